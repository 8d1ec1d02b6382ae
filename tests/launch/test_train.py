"""The train command as its users type it: ways to start it, what it leaves, what it refuses."""

from __future__ import annotations

import gzip
import json
import math
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from data.catalogue.catalog import MNIST
from data.formats.idx import read_idx
from tests.support.data_sets import make_idx
from tests.support.idx_files import write_idx
from tests.support.processes import ROOT, begin, launch, python_command, start, train, wait
from tests.support.runs import latest_weights, records, series

pytestmark = pytest.mark.process

Arguments = Callable[..., list[str]]


def test_a_run_leaves_the_files_of_the_contract(small: Arguments, tmp_path: Path) -> None:
    finished = train(*small("a run", "--checkpoint.every_steps=10", "--checkpoint.keep=2"))
    run = tmp_path / "a run"
    assert re.search(r"Final test accuracy \d+\.\d\d% .*run directory .*/a run", finished.stdout)
    assert f"Next: convoy evaluate '{run}' for" in finished.stdout, "as a shell takes it"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["train"]["global_batch_size"] == 24
    facts = json.loads((run / "environment.json").read_text())
    assert facts["world_size"] == 1
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["git_commit"] is None or len(facts["git_commit"]) == 40
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["step"] == 44
    assert summary["eval/accuracy"] > 0.9
    keys = {"step", "epoch", "time", "train/loss", "train/accuracy", "train/lr", "train/grad_norm"}
    assert keys | {"train/samples_per_second"} <= records(run)[0].keys()
    assert [r["epoch"] for r in records(run) if "eval/accuracy" in r] == [1.0, 2.0]
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names >= {"latest", "best", "step_00000040", "step_00000044"}
    best = (run / "checkpoints/best").resolve().name
    assert names - {best} == {"latest", "best", "step_00000040", "step_00000044"} - {best}
    manifest = json.loads((run / "checkpoints/latest/manifest.json").read_text())
    assert (manifest["step"], manifest["epoch"], manifest["position"]) == (44, 2, 2 * 509)
    assert manifest["world_size"] == 1
    assert manifest["files"].keys() == {"model.safetensors", "trainer.pt"}
    assert latest_weights(run).keys() == {
        f"layers.{i}.{p}" for i in (1, 4, 7) for p in ("weight", "bias")
    }
    torch.load(run / "checkpoints/latest/trainer.pt", weights_only=True)


def test_the_printed_config_runs_the_same_run(small: Arguments, tmp_path: Path) -> None:
    """config.yaml of a run is a config: training it again gives the same losses."""
    train(*small("first"))
    written = tmp_path / "first/config.yaml"
    train(f"--config={written}", "--name=second")
    assert series(tmp_path / "second", "train/loss") == series(tmp_path / "first", "train/loss")


def test_it_starts_from_any_folder_and_as_a_module(small: Arguments, tmp_path: Path) -> None:
    """A neighbour of the script, or a folder called `data` here, shadows nothing."""
    (tmp_path / "data").mkdir()
    (tmp_path / "evaluate.py").write_text("raise RuntimeError('shadowed')")
    arguments = ["--train.max_steps=2", "--logging.every_steps=1", f"--output_dir={tmp_path}"]
    commands = {
        "script": [sys.executable, str(ROOT / "launch/train.py")],
        "module": [sys.executable, "-m", "launch.train", "--config", "configs/mnist.yaml"],
    }
    for name, command in commands.items():
        finished = wait(start([*command, *arguments, f"--name={name}"], cwd=tmp_path))
        assert finished.status == 0, finished.output
    assert series(tmp_path / "script", "train/loss") == series(tmp_path / "module", "train/loss")


def test_help_shows_every_key_with_type_default_and_a_sentence() -> None:
    from configs.identity import flatten
    from configs.schema import RunConfig

    finished = launch("launch/train.py", "--help", "all")
    assert finished.status == 0
    for key in flatten(RunConfig()):
        assert re.search(rf"--{re.escape(key)}[ \n]", finished.stdout), key
    assert "Peak learning rate. (type: number; default: 0.001)" in finished.stdout


@pytest.mark.parametrize(
    ("shape", "suffix"), [((5, 11), ".gz"), ((6, 5, 3), ""), ((3, 8, 8), ""), ((1, 1), "")]
)
def test_it_trains_on_anybodys_idx_files(
    tmp_path: Path, shape: tuple[int, ...], suffix: str
) -> None:
    files = make_idx(tmp_path / "idx", num_train=37, num_test=3, shape=shape, suffix=suffix)
    train("--config=idx", f"--data.root={tmp_path}", f"--output_dir={tmp_path}", "--name=run")
    assert files.exists()
    assert records(tmp_path / "run")[-1]["eval/count"] == 3


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--train.epoch=3"], "Did you mean 'train.epochs'?"),
        (["--train.epochs=many"], "train.epochs: given 'many', expected a whole number"),
        (["--optimizer.lr=-1"], "optimizer.lr: given -1.0, expected a number above 0"),
        (["--config=nowhere.yaml"], "given 'nowhere.yaml', expected a YAML file"),
        (["--parallel.backend=nccl", "--parallel.device=cpu"], "expected gloo"),
        (["--train.micro_batch_size=10"], "expected a divisor of train.global_batch_size=24"),
        (["--parallel.reduction=exact", "--parallel.shards=16"], "parallel.shards=16"),
        (["--model.name=mpl"], "Did you mean 'mlp'?"),
        (["--model.kwargs.droput=0.5"], "unexpected keyword argument 'droput'"),
        (["--model.name=convnet"], "or none with --model.kwargs '{}'."),
        (["--model.name=no.such:thing"], "expected an importable module"),
        (
            [f"--checkpoint.resume={'a' * 300}"],
            "expected a path that may exist (File name too long)",
        ),
        (["--data.root=/no/such/folder"], "given '/no/such/folder', expected a folder that exists"),
        (["--checkpoint.resume=/no/such"], "given '/no/such', expected auto, never, or the path"),
        (["--output_dir=/proc/nowhere"], "cannot write to /proc/nowhere"),
        (["--schedule.warmup_steps=99999"], "fewer than the 44 steps of the run"),
    ],
)
def test_bad_input_gives_one_message_and_status_2(
    small: Arguments, tmp_path: Path, extra: list[str], message: str
) -> None:
    finished = launch("launch/train.py", *small("refused", *extra))
    assert finished.status == 2, finished.output
    assert message in finished.stderr
    assert finished.stderr.count("error:") == 1
    assert "Traceback" not in finished.output
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--train.epoch=3"], "Did you mean 'train.epochs'?"),
        (["--train.global_batch_size=1"], "at least one sample for each of the 2 ranks"),
        (["--model.name=mpl"], "Did you mean 'mlp'?"),
    ],
)
def test_several_ranks_print_one_message(small: Arguments, extra: list[str], message: str) -> None:
    finished = launch("launch/train.py", *small("refused", *extra), ranks=2)
    assert finished.status != 0
    assert finished.stderr.count("error: ") == 1
    assert message in finished.stderr
    assert re.search(r"exitcode +: 2 ", finished.stderr)


def break_files(folder: Path, how: str) -> None:
    """Damage a copy of the embedded MNIST."""
    images = folder / "train-images-idx3-ubyte.gz"
    content = images.read_bytes()
    if how == "missing":
        images.unlink()
    elif how == "truncated":
        images.write_bytes(content[: len(content) // 2])
    elif how == "not gzip":
        images.write_bytes(b"no such file")
    elif how == "a web page":
        images.write_bytes(b"<html>404</html>")
    elif how == "other digest":
        plain = bytearray(gzip.decompress(content))
        plain[1000] ^= 1
        images.write_bytes(gzip.compress(bytes(plain), 1))
    elif how == "labels for images":
        shutil.copy(folder / "train-labels-idx1-ubyte.gz", images)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "train-images-idx3-ubyte.gz"),
        ("truncated", "cannot be read"),
        ("not gzip", "is not an IDX file"),
        ("a web page", "given 'a web page (HTML)'"),
        ("other digest", "has another content than the published file"),
        ("labels for images", "has another content than the published file"),
    ],
)
def test_broken_data_is_refused(tmp_path: Path, how: str, message: str) -> None:
    assert MNIST.embedded is not None
    shutil.copytree(MNIST.embedded, tmp_path / "mnist")
    break_files(tmp_path / "mnist", how)
    finished = launch(
        "launch/train.py",
        f"--data.root={tmp_path}",
        "--data.download=false",
        f"--output_dir={tmp_path}",
        "--name=run",
    )
    assert finished.status == 2, finished.output
    assert message in finished.stderr
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_state(
    small: Arguments, tmp_path: Path
) -> None:
    """Ended with status 1 on every rank, and the checkpoints are those from before."""
    train(*small("run", "--train.max_steps=10"))
    weights = latest_weights(tmp_path / "run")
    finished = launch(
        "launch/train.py",
        *small("hot", "--optimizer.lr=1e30", "--logging.every_steps=9"),
        f"--checkpoint.resume={tmp_path / 'run'}",
        ranks=2,
    )
    assert finished.status == 1
    assert "the loss of step 12 is not finite" in finished.stderr
    assert finished.stderr.count("error: ") == 1
    assert json.loads((tmp_path / "hot/summary.json").read_text())["status"] == "failed"
    assert not list((tmp_path / "hot/checkpoints").glob("step_*"))
    assert all(torch.equal(w, weights[n]) for n, w in latest_weights(tmp_path / "run").items())


def test_a_model_of_ones_own_in_a_folder_called_data_is_refused_with_the_way_out(
    small: Arguments, tmp_path: Path
) -> None:
    """Law: as typed in the user's folder; under the name that the message gives, it trains."""
    source = "import torch\nclass Net(torch.nn.Sequential):\n    def __init__(self):\n"
    source += "        super().__init__(torch.nn.Flatten(), torch.nn.Linear(63, 5))\n"
    (tmp_path / "data").mkdir()
    file = tmp_path / "data/mynet.py"
    file.write_text(source)
    drop = "--model.kwargs={}"
    command = [sys.executable, str(ROOT / "launch/train.py"), *small("run", drop)]
    finished = wait(start([*command, "--model.name=data.mynet:Net"], cwd=tmp_path))
    assert finished.status == 2, finished.output
    assert finished.stderr.count("error:") == 1
    assert f"{file} is hidden: 'data' is imported from {ROOT}/data/__init__.py." in finished.stderr
    assert "Give your folder 'data' a name of its own, such as 'my_data'" in finished.stderr
    (tmp_path / "data").rename(tmp_path / "my_data")
    finished = wait(start([*command, "--model.name=my_data.mynet:Net"], cwd=tmp_path))
    assert finished.status == 0, finished.output


def test_a_model_and_data_of_ones_own_are_found_in_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def __init__(self, num_classes, width):\n"
        "        super().__init__(width, num_classes)\n"
        "class Points(torch.utils.data.Dataset):\n"
        "    num_classes = 2\n"
        "    def __len__(self): return 50\n"
        "    def __getitem__(self, i): return torch.tensor([float(i), 1.0]), i % 2\n"
        "def build(): return Points(), Points()\n"
    )
    command = [
        sys.executable,
        str(ROOT / "launch/train.py"),
        "--model.name=mine:Net",
        '--model.kwargs={"width": 2}',
        "--data.dataset=mine:build",
        "--data.workers=1",
        "--train.epochs=1",
        "--name=run",
        f"--output_dir={tmp_path}",
    ]
    finished = wait(start(command, cwd=tmp_path))
    assert finished.status == 0, finished.output
    assert latest_weights(tmp_path / "run").keys() == {"weight", "bias"}


def test_wandb_records_offline_and_continues_the_same_run(small: Arguments, tmp_path: Path) -> None:
    extra = ["--logging.wandb.mode=online"]
    env = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    train(*small("run", *extra, "--train.max_steps=3"), env=env)
    saved = json.loads((tmp_path / "run/wandb.json").read_text())["id"]
    train(*small("run", *extra, "--train.max_steps=6"), env=env)
    written = list((tmp_path / "run/wandb").glob("offline-run-*"))
    assert len(written) == 2
    assert all(path.name.endswith(saved) for path in written)


def test_wandb_out_of_reach_does_not_stop_a_run(small: Arguments, tmp_path: Path) -> None:
    finished = train(
        *small("run", "--logging.wandb.mode=online", "--train.max_steps=3"),
        env={"HOME": str(tmp_path), "WANDB_SILENT": "true"},
    )
    assert "no API key" in finished.stderr
    assert list((tmp_path / "run/wandb").glob("offline-run-*"))


def test_two_runs_in_one_folder_are_refused(small: Arguments, tmp_path: Path) -> None:
    first = begin(python_command("launch/train.py", *small("run", "--train.epochs=99999")))
    while not (tmp_path / "run/metrics.jsonl").exists():
        assert first.poll() is None
    second = launch("launch/train.py", *small("run", "--train.epochs=99999"))
    first.send_signal(signal.SIGTERM)
    assert wait(first).status == 75
    assert second.status == 2
    assert "another process is training in" in second.stderr


def test_prepare_data_says_where_the_embedded_files_lie() -> None:
    finished = launch("launch/prepare_data.py", "mnist")
    assert finished.status == 0
    assert "60,000 + 10,000 samples of shape (1, 28, 28) in 10 classes" in finished.stdout


def test_float_images_and_wide_labels_train_too(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        write_idx(tmp_path / f"{split}-images", random.normal(size=(200, 4, 4)).astype(np.float32))
        write_idx(tmp_path / f"{split}-labels", random.integers(0, 300, 200).astype(np.int32))
    options = ("--train.epochs=3", "--logging.every_steps=1", f"--output_dir={tmp_path}")
    train("--config=idx", f"--data.root={tmp_path}", "--name=run", *options)
    classes = 1 + max(int(read_idx(tmp_path / f"{s}-labels").max()) for s in ("train", "test"))
    assert latest_weights(tmp_path / "run")["layers.7.weight"].shape == (classes, 128)
    losses = series(tmp_path / "run", "train/loss")
    assert losses[0] == pytest.approx(math.log(classes), rel=0.2)  # normalised, so it starts there
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_main_job_reaches_its_accuracy(tmp_path: Path, ranks: int) -> None:
    """97.8 % on the MNIST test set after 10 epochs."""
    train(f"--output_dir={tmp_path}", ranks=ranks)
    assert json.loads((tmp_path / "mnist/summary.json").read_text())["eval/accuracy"] >= 0.978
