"""Commands of the documentation that take seconds are run, on small data in place of MNIST."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.support.commands import Command, all_commands, ends_well
from tests.support.data_sets import make_idx
from tests.support.processes import ROOT, launch

COMMANDS = all_commands()
NOT_RUN = {
    r"benchmark\.py|torture\.py|peers/": "takes minutes",
    r"doctor\.py|find_lr\.py": "run by test_docs_debugging.py and tests/launch/test_find_lr.py",
    r"strategy fsdp": "run below, on two ranks",
    r"cifar10|image_folder|huggingface|entity/|wandb": "needs data, an account or a network",
    r"compile\.enabled true": "takes long; run by tests/launch/test_compiled_runs.py",
    r"parallel\.engine accelerate": "run by tests/launch/test_accelerate.py",
    r"--format (onnx|torch_export)": "takes long; run by tests/launch/test_export.py",
    r"predict\.py \S+ -": "reads its standard input; run by tests/launch/test_predict.py",
    r"gpt_small|--prompt": "takes long; run by tests/launch/test_language_model.py",
    r"runs/seeds": "needs runs of an example",
    r"prepare_data": "fills the cache of the machine",
    r"examples/(timm|torchvision|bert|boxes)\.": "run by tests/examples/test_packages.py",
    r"runs/mnist runs/mnist_1|data/embedded": "run in README's order by test_docs_in_order.py",
    r"--help": "prints and ends: run by tests/launch/test_train.py",
}
RUN_WHOLE = ("docs/compare.md", "docs/using_a_model.md")
"""Pages whose commands are run from top to bottom by tests of their own."""
SCRIPTS = r"launch[/.](train|compare|evaluate|predict|export)(\.py)?$"


def is_run(command: Command) -> bool:
    line = " ".join(command.plain)
    ours = any(re.match(SCRIPTS, word) for word in command.plain)
    ours = ours and command.page not in RUN_WHOLE
    return ours and not any(re.search(pattern, line) for pattern in NOT_RUN)


RUN = [command for command in COMMANDS if is_run(command)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST in small: 1,000 and 60 images of 28 x 28 pixels in ten classes."""
    folder = tmp_path_factory.mktemp("small")
    return make_idx(folder, num_train=1000, num_test=60, shape=(28, 28), num_classes=10)


def here(arguments: Sequence[object], script: str = "train") -> None:
    """A command to its end in this process."""
    with ends_well():
        command = importlib.import_module(f"launch.{script}").main
        assert command([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Path:
    """A folder in which a reader has trained, with the files that the pages name."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("reader")
    options = [f"--output_dir={folder / 'runs'}", "--train.max_steps=2", "--logging.progress=off"]
    here(["--data.dataset=idx", f"--data.root={files}", *options])
    for name in ("a", "b", "one", "two", "spirals", "mnist_parts", "seeds", "validated"):
        shutil.copytree(folder / "runs/mnist", folder / "runs" / name, symlinks=True)
    picture = Image.fromarray(np.full((28, 28), 40, dtype=np.uint8))
    for file in ("digit.png", "digits.png"):
        picture.save(folder / file)
    picture.resize((50, 40)).save(folder / "photo.jpg")
    (folder / "results").mkdir()
    np.save(folder / "images.npy", np.zeros((5, 28, 28), dtype=np.uint8))
    return folder


def arguments_of(command: Command, files: Path, folder: Path) -> tuple[str, list[str]]:
    """The script of a command and its arguments, a few steps on small data in place of MNIST."""
    at = next(i for i, word in enumerate(command.plain) if re.match(SCRIPTS, word))
    script = re.match(SCRIPTS, command.plain[at])
    assert script
    words = [word.replace("FOLDER", str(files)) for word in command.plain[at + 1 :]]
    words = [word.replace("examples/", f"{ROOT}/examples/") for word in words]
    if script[1] == "train":
        words += [f"--output_dir={folder / 'runs'}", "--logging.progress=off"]
        words += [] if "--schedule.warmup_steps" in words else ["--train.max_steps=3"]
        words += ["--schedule.warmup_steps=1"] if "gpt_chars" in words else []
        own = any("examples/" in word or word in ("wine", "gpt_chars") for word in words)
        if not own and "--dry_run.world_size" not in words:  # which takes MNIST's 60,000 samples
            words += ["--data.dataset=idx", f"--data.root={files}"]
    return script[1], words


@pytest.mark.process
@pytest.mark.parametrize("command", RUN, ids=str)
def test_commands_that_run_in_seconds_are_run(
    command: Command,
    files: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law: it ends with status 0, with its own options; ranks are tried by tests/launch."""
    monkeypatch.setenv("KINETO_LOG_LEVEL", "6")  # which --profile would set
    script, words = arguments_of(command, files, tmp_path)
    monkeypatch.chdir(tmp_path if script == "train" else finished)
    here(words, script)


@pytest.mark.process
def test_the_sharded_command_runs_on_its_two_ranks(files: Path, tmp_path: Path) -> None:
    """Law: the first command of docs/parallel.md works as written, on small data."""
    command = next(c for c in COMMANDS if "fsdp" in c.words and c.program == "torchrun")
    _, words = arguments_of(command, files, tmp_path)
    finished = launch("launch/train.py", *words, "--model.kwargs.depth=1", ranks=2)
    assert finished.status == 0, finished.output
    saved = tmp_path / "runs/mnist_vit/environment.json"
    assert json.loads(saved.read_text())["world_size"] == 2


@pytest.mark.process
def test_the_twenty_lines_of_the_readme_learn(tmp_path: Path) -> None:
    """Law: they are the file in examples/, and the network tells the spirals apart."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    for language, file in (("python", "spirals.py"), ("yaml", "spirals.yaml")):
        (block,) = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
        assert (ROOT / "examples" / file).read_text(encoding="utf-8").endswith(block)
    here([f"--config={ROOT}/examples/spirals.yaml", f"--output_dir={tmp_path}"])
    summary = json.loads((tmp_path / "spirals/summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["best/accuracy"] > 0.97
