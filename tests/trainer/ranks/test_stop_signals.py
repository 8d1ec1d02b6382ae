"""A request to stop is a flag, until somebody insists."""

from __future__ import annotations

import contextlib
import os
import signal
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.processes import run_code
from trainer.ranks import stop_signals as preempt
from trainer.ranks.runtime import Runtime
from trainer.ranks.stop_signals import (
    SIGNALS,
    StopPoll,
    StopRequest,
    hear_earlier_request,
    stop_on_signals,
)

ALONE = Runtime(launcher="python")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_the_flag_and_does_nothing_else(number: signal.Signals) -> None:
    with stop_on_signals() as request:
        assert not request.pending
        os.kill(os.getpid(), number)
        assert request.pending
        assert request.signal is number


@pytest.mark.parametrize("number", SIGNALS)
def test_the_old_handlers_are_put_back(number: signal.Signals) -> None:
    heard = []
    before = signal.signal(number, lambda *_: heard.append("mine"))
    try:
        with contextlib.suppress(ZeroDivisionError), stop_on_signals() as request:
            os.kill(os.getpid(), number)
            raise ZeroDivisionError
        assert request.pending
        assert not heard
        os.kill(os.getpid(), number)
        assert heard == ["mine"]
    finally:
        signal.signal(number, before)


def test_a_new_request_does_not_remember_an_old_one() -> None:
    with stop_on_signals():
        os.kill(os.getpid(), signal.SIGUSR1)
    with stop_on_signals() as request:
        assert not request.pending


def test_a_signal_repeated_at_once_is_the_same_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(status: int) -> None:
        raise AssertionError(f"the process would have ended with status {status}")

    monkeypatch.setattr(preempt, "SAME_REQUEST_SECONDS", 3600.0)
    monkeypatch.setattr(os, "_exit", ended)
    with stop_on_signals() as request:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert request.signal is signal.SIGINT


@pytest.mark.process
@pytest.mark.parametrize("second", SIGNALS)
def test_a_later_second_signal_ends_the_process_at_once(second: signal.Signals) -> None:
    """Without leaving blocks, and so without waiting for whatever hangs."""
    script = f"""
        import os, signal
        from trainer.ranks import stop_signals as preempt
        preempt.SAME_REQUEST_SECONDS = -1.0
        try:
            with preempt.stop_on_signals() as request:
                os.kill(os.getpid(), signal.SIGTERM)
                print("asked", request.pending, flush=True)
                os.kill(os.getpid(), {int(second)})
                print("still here", flush=True)
        finally:
            print("cleaned up", flush=True)
    """
    finished = run_code(textwrap.dedent(script))
    assert finished.status == 128 + second, finished.stderr
    assert finished.stdout.split("\n") == ["asked True", ""]


def test_where_others_work_too_a_second_ctrl_c_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook outlives its cell."""
    monkeypatch.setattr(preempt, "SAME_REQUEST_SECONDS", -1.0)
    with stop_on_signals(raises=True) as request:
        signal.raise_signal(signal.SIGINT)
        assert request.pending
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_request_from_before_is_heard_by_its_file(tmp_path: Path) -> None:
    """As slurm/train.sbatch leaves it for ranks that do not run yet."""
    file = tmp_path / "asked"
    with stop_on_signals() as request:
        hear_earlier_request({})
        hear_earlier_request({"CONVOY_STOP_FILE": str(file)})
        assert not request.pending
        file.touch()
        hear_earlier_request({"CONVOY_STOP_FILE": str(file)})
        assert request.signal is signal.SIGUSR1


def test_in_a_thread_nothing_is_heard_and_nothing_fails() -> None:
    def handlers() -> list[object]:
        with stop_on_signals() as request:
            return [request.pending, *map(signal.getsignal, SIGNALS)]

    before = [False, *map(signal.getsignal, SIGNALS)]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(handlers).result() == before


def test_a_single_rank_hears_of_a_request_at_the_very_next_poll() -> None:
    request = StopRequest()
    poll = StopPoll(request, ALONE)
    assert [poll() for _ in range(1000)] == [False] * 1000
    request.handle(signal.SIGTERM, None)
    assert [poll() for _ in range(3)] == [True] * 3
