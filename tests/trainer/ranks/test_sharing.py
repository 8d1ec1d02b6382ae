"""Machines that are shared: when threads sleep instead of spinning, and what is said."""

from __future__ import annotations

import os
import threading
import time

import pytest
import torch

from trainer.ranks.runtime import Runtime
from trainer.ranks.sharing import (
    CALM_LOOKS,
    SAID_AFTER,
    Sharing,
    SleepingThreads,
    find_openmp,
    sharing_noticed,
)


class Calls(list[str]):
    """Notes how threads wait."""

    def begin(self) -> None:
        self.append("asleep")

    def end(self) -> None:
        self.append("awake")


def test_threads_sleep_while_others_want_the_cores() -> None:
    """Law: at the first look at it; they spin again when it has been over for a while."""
    calls = Calls()
    sharing = Sharing(threads=2, ranks=1, cores=2, sleeping=calls)
    for others in (0.0, 0.2, 1.0, 0.9, *[0.1] * (CALM_LOOKS - 1), 0.8):
        sharing.look(others)
    assert calls == ["asleep"]
    for _ in range(CALM_LOOKS):
        sharing.look(0.0)
    assert calls == ["asleep", "awake"]
    sharing.look(2.0)
    sharing.end()
    sharing.end()
    assert calls == ["asleep", "awake"] * 2


def test_a_shared_machine_is_said_once() -> None:
    sharing = Sharing(threads=1, ranks=2, cores=2, sleeping=None)
    assert {sharing.look(1.0) for _ in range(100)} == {""}  # the other rank has a core of its own
    lines = [sharing.look(1.9) for _ in range(100)]
    assert [bool(line) for line in lines].index(True) == SAID_AFTER - 1
    (line,) = filter(None, lines)
    assert line.startswith("this machine is shared: other processes")
    assert "keep 1.9 of 2 cores busy, beside 1 thread of this rank (2 on this machine)" in line


@pytest.fixture
def two_threads() -> torch.Tensor:
    """Torch with two threads, and numbers enough for both."""
    if find_openmp() is None or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("GCC'S OPENMP IS NOT WHAT TORCH USES HERE, or there is one core")
    torch.set_num_threads(2)
    return torch.ones(1 << 18)


def waiting_seconds(numbers: torch.Tensor) -> float:
    """CPU time that threads take while nobody has work for them."""
    spent = 0.0
    for _ in range(40):
        numbers.mul_(1.0)
        began = time.process_time()
        time.sleep(0.005)
        spent += time.process_time() - began
    return spent


def test_threads_that_sleep_take_no_time_and_change_no_bits(two_threads: torch.Tensor) -> None:
    """Law: and they spin again afterwards, with none left over."""
    library = find_openmp()
    assert library is not None
    matrix = torch.randn(257, 257)
    spinning, product = waiting_seconds(two_threads), matrix @ matrix
    threads = threading.active_count()
    sleeping = SleepingThreads(library, 2)
    sleeping.begin()
    time.sleep(0.1)
    asleep, same = waiting_seconds(two_threads), matrix @ matrix
    sleeping.end()
    again = waiting_seconds(two_threads)
    assert asleep < spinning / 3
    assert asleep < again / 3
    assert torch.equal(product, same)
    assert threading.active_count() == threads


def test_watching_leaves_nothing_behind() -> None:
    before = threading.active_count()
    with sharing_noticed(Runtime(launcher="python")):
        assert threading.active_count() == before + 1
        time.sleep(0.6)
    assert threading.active_count() == before
