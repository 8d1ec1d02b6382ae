"""Worker processes end with what they work for, ignore what stops a run, and have room to start."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data.loading.host_loader import LONGEST_TMPDIR
from tests.support.loading import (
    assert_samples,
    expected_batches,
    host,
    make_plan,
)
from tests.support.processes import launch, start, wait

pytestmark = pytest.mark.process


@pytest.fixture
def workers() -> Callable[[], set[int | None]]:
    """Ids of the worker processes started since the test began."""
    gc.collect()
    before = {child.pid for child in multiprocessing.active_children()}
    return lambda: {child.pid for child in multiprocessing.active_children()} - before


def test_workers_end_with_the_iterator_and_with_the_loader(
    workers: Callable[[], set[int | None]],
) -> None:
    """Law: no process outlives what it works for."""
    loader = host(make_plan(), 2)
    stream = loader.stream(0)
    next(stream)
    assert len(workers()) == 2
    del stream
    gc.collect()
    assert workers() == set()
    list(loader.evaluation("test", 5, 0, 1))
    assert len(workers()) == 2
    del loader
    gc.collect()
    assert workers() == set()


def test_evaluations_share_their_workers(workers: Callable[[], set[int | None]]) -> None:
    """Law: workers are started once, not once per epoch."""
    loader = host(make_plan(), 2)
    list(loader.evaluation("test", 5, 0, 1))
    before = workers()
    list(loader.evaluation("test", 5, 0, 1))
    assert workers() == before
    assert len(before) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_workers_ignore_the_signals_that_stop_a_run(
    number: signal.Signals, workers: Callable[[], set[int | None]]
) -> None:
    """Law: a stop request is for the trainer; batches keep coming until it has saved."""
    plan = make_plan()
    stream = host(plan, 2).stream(0)
    batches = [next(stream), next(stream)]  # one from each worker: both have started
    before = workers()
    for pid in before:
        assert pid is not None
        os.kill(pid, number)
    batches += [next(stream) for _ in range(8)]
    for batch, indices in zip(batches, expected_batches(plan, 0, 10), strict=True):
        assert_samples(batch, indices)
    assert workers() == before


ENDING = """
import sys
from tests.support.loading import NUM_TRAIN, Failing, PerSample, host, make_plan
how = sys.argv[1]
train = Failing(NUM_TRAIN) if how == "fails in a worker" else PerSample(NUM_TRAIN)
loader = host(make_plan(), 2, train)
list(loader.evaluation("test", 5, 0, 1))
stream = loader.stream(0)
print("started", flush=True)
next(stream)
if how == "fails beside them":
    raise RuntimeError("mine")
"""


@pytest.mark.parametrize(
    ("how", "status"), [("returns", 0), ("fails beside them", 1), ("fails in a worker", 1)]
)
def test_a_process_ends_although_its_workers_are_alive(how: str, status: int) -> None:
    """Law: a run that fails says so and ends; it does not wait for workers that ignore SIGTERM."""
    finished = wait(start([sys.executable, "-c", ENDING, how]), timeout=60)
    assert "started" in finished.stdout
    assert finished.status == status, finished.output
    assert ("mine" in finished.stderr) == (status == 1)


def test_a_folder_too_deep_for_sockets_is_refused_before_anything_hangs(
    small: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Law: the longest folder that is accepted works, with workers."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        for length, status in ((LONGEST_TMPDIR, 0), (LONGEST_TMPDIR + 1, 2)):
            folder = Path(short) / ("x" * (length - len(short) - 1))
            folder.mkdir()
            finished = launch(
                "launch/train.py",
                *small(f"run{length}", "--data.workers=1", "--train.max_steps=2"),
                env={"TMPDIR": str(folder)},
            )
            assert finished.status == status, finished.output
    assert "Set TMPDIR=/tmp" in finished.output
