"""The commands of README.md as a reader types them: one after the other, after `make train`."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from configs.imports import MissingExtra
from tests.support.commands import Command, ends_well, find_commands
from tests.support.data_sets import make_idx
from tests.support.processes import ROOT

LEFT_OUT = {
    r"^make|torture|benchmark|sweep": "make train is how it begins; the others take minutes",
    r"doctor": "run by test_docs_debugging.py",
    r"prepare": "fills the cache of the machine",
    r"gpt_chars|examples/": "run by test_docs_quick_commands.py",
}
SCRIPT = re.compile(r"(?:launch[/.])?(train|compare|evaluate|predict|export|find[-_]lr)(?:\.py)?")
STEPS = "--train.max_steps=2"
MODULES = {"pillow": "PIL"}
"""Packages whose module has another name."""


def commands() -> list[Command]:
    """In their order on the page, those of a block before those within a line."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    found = list(find_commands(page, "README.md"))
    return [c for c in found if not any(re.search(left, " ".join(c.words)) for left in LEFT_OUT)]


def only_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what `make train` installs can be imported: none of the extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needs = [need for extra in extras.keys() - {"test", "lint"} for need in extras[extra]]
    for package in packages(needs) - packages(metadata.requires("torch") or []):
        name = MODULES.get(package, package)
        loaded = [module for module in sys.modules if module.startswith(f"{name}.")]
        for module in (name, *loaded):
            monkeypatch.setitem(sys.modules, module, None)


def packages(needs: list[str]) -> set[str]:
    """Their names, without versions."""
    return set(re.findall(r"^[\w-]+", "\n".join(needs), re.MULTILINE))


@pytest.mark.process
def test_they_run_in_order_in_the_environment_of_make_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: none meets a run that an earlier one has finished or a file that is not there, and what
    needs an extra says which line installs it."""
    files = make_idx(
        tmp_path / "FOLDER", num_train=1000, num_test=60, shape=(28, 28), num_classes=10
    )
    only_base(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KINETO_LOG_LEVEL", "6")  # which --profile would set
    small = [STEPS, "--data.dataset=idx", f"--data.root={files}", "--logging.progress=off"]
    ran, missing = [], []
    make_train = ("launch/train.py", "--config", "configs/mnist.yaml")
    for words in (make_train, *(command.words for command in commands())):
        at = next((i for i, word in enumerate(words) if SCRIPT.fullmatch(word)), None)
        if at is None:
            continue
        named = SCRIPT.fullmatch(words[at])
        assert named
        script = named[1].replace("-", "_")
        given = [word.replace("data/embedded", f"{ROOT}/data/embedded") for word in words[at + 1 :]]
        if given[:1] == ["--nproc"]:
            del given[:2]  # ranks are tried by tests/launch
        dry = any("dry_run" in word for word in given)  # which takes MNIST's 60,000 samples
        given += small if script in ("train", "find_lr") and not dry else []
        try:
            with ends_well():
                assert importlib.import_module(f"launch.{script}").main(given) == 0, words
        except MissingExtra as refused:
            missing.append((script, str(refused)))
        ran.append(script)
        assert "already finished" not in capsys.readouterr().out, words
    assert {"train", "compare", "evaluate", "predict", "export", "find_lr"} <= set(ran)
    said = {script: re.findall(r"Run `(pip .*)`", words) for script, words in missing}
    line = "pip install -c constraints.txt -e '.[{}]'"
    needs = {"evaluate": "report", "export": "export"}
    assert said == {script: [line.format(extra)] for script, extra in needs.items()}
    # Everything lies where OUTPUT_DIR says, or where the command line does.
    assert {path.name for path in tmp_path.iterdir()} <= {"FOLDER", "runs", "report.html"}
    assert (tmp_path / "runs/mnist_lr_finder.json").is_file()
