"""Shared fixtures: small data, a trained run, a check that tests leave no traces."""

from __future__ import annotations

import os

# Processes side by side with several threads each are slow: threads spin at barriers.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import itertools
import random
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo  # its first import sets an environment variable

pytest.register_assert_rewrite("tests.support")  # an assertion there says what it found, too

from configs.trust import judge  # noqa: E402
from tests.support.data_sets import make_idx  # noqa: E402
from tests.support.process_guard import Guard  # noqa: E402
from tests.support.runs import train_here  # noqa: E402
from tests.support.wandb_server import wandb_environment  # noqa: E402

NUMBERS = itertools.count()
GUARD = Guard()
GUARD.install()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool, bool]:
    """A test that starts a process says so: what is set up for it first counts too."""
    with GUARD.watching(item), process_as_before():
        return (yield)


@contextmanager
def process_as_before() -> Iterator[None]:
    """No test depends on what those before it, and their fixtures, have drawn, or set in torch, or
    on what the folder of a config has added to the import path."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    path = list(sys.path)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    yield
    sys.path[:] = path
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.set_flush_denormal(False)  # a command sets it for its process
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """A test that changes the environment, or leaves a thread or a process group, fails."""
    before = dict(os.environ), set(threading.enumerate()), Path.cwd()
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    yield
    judge([], [], [])  # the config of a run directory limits what its process imports
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
def one_thread() -> None:
    """Bits are compared: sums must have one order."""
    torch.set_num_threads(1)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Write a module of the user's, importable for the length of a test; returns its name."""
    monkeypatch.syspath_prepend(tmp_path)
    names: list[str] = []

    def write(source: str) -> str:
        names.append(f"module_of_user_{next(NUMBERS)}")
        (tmp_path / f"{names[-1]}.py").write_text(source)
        return names[-1]

    yield write
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def wandb_stays_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No account, no server, and nothing of W&B's outside of tmp_path."""
    import wandb

    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    for name, value in wandb_environment(tmp_path / "wandb-home").items():
        monkeypatch.setenv(name, value)
    yield
    wandb.teardown()


@pytest.fixture
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device("cuda")


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


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, idx_folder: Path) -> Path:
    """A finished run on `idx_folder`, not to be written to; test batches of 40, 40 and 21."""
    kwargs = '--model.kwargs={"hidden": [24, 16], "dropout": 0.2}'
    return train_here(tmp_path_factory.mktemp("trained"), idx_folder, kwargs)
