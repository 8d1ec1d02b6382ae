"""Shared fixtures: small data, commands as real processes, a check that tests leave no traces."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo  # its first import sets an environment variable

from data.formats.idx import write_idx

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_SECONDS = 240


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """A test that changes the environment, or leaves a thread or a process group, fails."""
    before = dict(os.environ), set(threading.enumerate()), Path.cwd()
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    yield
    changed = {
        name
        for name in before[0].keys() | os.environ.keys()
        if before[0].get(name) != os.environ.get(name)
        and name != "PYTEST_CURRENT_TEST"
        and not name.startswith(("TRITON_", "TORCHINDUCTOR_"))  # torch.compile's, once a process
    }
    assert not changed, f"environment variables leaked: {sorted(changed)}"
    left = [t for t in threading.enumerate() if t not in before[1] and t.is_alive()]
    assert not [t for t in left if not t.daemon], f"threads leaked: {left}"
    assert not torch.distributed.is_initialized(), "a process group leaked"
    assert Path.cwd() == before[2], "the working directory leaked"
    after = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    assert after == handlers, "signal handlers leaked"


@pytest.fixture
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device("cuda")


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """This environment, one thread per rank, without variables a launcher or W&B may have left."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WANDB_", "SLURM_", "TORCHELASTIC_", "ACCELERATE_"))
        and name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    }
    return clean | {"OMP_NUM_THREADS": "1"} | (extra or {})


def start(command: list[str], *, cwd: Path = ROOT, env: dict[str, str] | None = None) -> Any:
    """A command in a session of its own, so that a signal to it reaches nobody else."""
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait(process: Any, timeout: float = TIMEOUT_SECONDS) -> Finished:
    """The end of a started command; whatever it leaves behind is killed."""
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        raise AssertionError(
            f"no end after {timeout} s:\n{stdout[-3000:]}\n{stderr[-3000:]}"
        ) from None
    return Finished(process.returncode, stdout, stderr)


def python_command(script: str | Path, *arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / script), *map(str, arguments)]


def torchrun_command(ranks: int, script: str | Path, *arguments: object) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={ranks}",
        str(ROOT / script),
        *map(str, arguments),
    ]


def launch(
    script: str | Path,
    *arguments: object,
    ranks: int = 1,
    cwd: Path = ROOT,
    env: dict[str, str] | None = None,
) -> Finished:
    """Run a script of the project to its end: plain python for one rank, torchrun for more."""
    command = (
        python_command(script, *arguments)
        if ranks == 1
        else torchrun_command(ranks, script, *arguments)
    )
    return wait(start(command, cwd=cwd, env=env))


def train(*arguments: object, ranks: int = 1, env: dict[str, str] | None = None) -> Finished:
    """`launch/train.py` to its end, which must be a good one."""
    finished = launch("launch/train.py", *arguments, ranks=ranks, env=env)
    assert finished.status == 0, finished.output[-4000:]
    return finished


def records(run: Path) -> list[dict[str, Any]]:
    """The records of a run directory."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def series(run: Path, key: str) -> list[float]:
    """One value of every record that has it."""
    return [record[key] for record in records(run) if key in record]


def latest_weights(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "checkpoints" / "latest" / "model.safetensors")


def assert_same_bits(first: Path, second: Path) -> None:
    """The latest weights of two runs are the same files, byte for byte."""
    ours, theirs = (run / "checkpoints/latest/model.safetensors" for run in (first, second))
    assert ours.read_bytes() == theirs.read_bytes()


def make_idx(
    folder: Path,
    *,
    num_train: int = 509,
    num_test: int = 101,
    shape: tuple[int, ...] = (9, 7),
    num_classes: int = 5,
    suffix: str = "",
) -> Path:
    """Four IDX files of odd sizes whose classes can be learned."""
    random = np.random.default_rng(0)
    patterns = random.integers(0, 200, (num_classes, *shape))
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", num_train), ("test", num_test)):
        labels = random.integers(0, num_classes, count).astype(np.uint8)
        noise = random.integers(0, 56, (count, *shape))
        images = (patterns[labels] + noise).astype(np.uint8)
        write_idx(folder / f"{split}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte{suffix}", labels)
    return folder


@pytest.fixture(scope="session")
def idx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """509 training and 101 test images of 9 x 7 pixels in 5 classes."""
    return make_idx(tmp_path_factory.mktemp("idx"))


@pytest.fixture
def small(idx_folder: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Arguments of a quick run on the small IDX files; its directory is tmp_path/NAME."""

    def arguments(name: str = "run", *more: object) -> list[str]:
        return [
            "--config=idx",
            f"--data.root={idx_folder}",
            f"--output_dir={tmp_path}",
            f"--name={name}",
            '--model.kwargs={"hidden": [24, 16], "dropout": 0.2}',
            "--train.global_batch_size=24",
            "--train.epochs=2",
            "--logging.every_steps=1",
            *map(str, more),
        ]

    return arguments


def train_here(folder: Path, data: Path, *more: object) -> Path:
    """A quick run trained in this process; its directory is `folder`/run."""
    from launch.train import main

    state = torch.get_rng_state()
    arguments = [
        "--config=idx",
        f"--data.root={data}",
        f"--output_dir={folder}",
        "--name=run",
        "--parallel.device=cpu",
        "--train.global_batch_size=24",
        "--train.epochs=2",
        "--evaluate.batch_size=40",
        "--logging.progress=off",
    ]
    try:
        assert main([*arguments, *map(str, more)]) == 0
    finally:
        torch.set_rng_state(state)
    return folder / "run"


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, idx_folder: Path) -> Path:
    """A finished run on `idx_folder`, not to be written to; test batches of 40, 40 and 21."""
    kwargs = '--model.kwargs={"hidden": [24, 16], "dropout": 0.2}'
    return train_here(tmp_path_factory.mktemp("trained"), idx_folder, kwargs)
