"""When ranks wait for each other too long: who is missing, at which collective of which step."""

from __future__ import annotations

import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from trainer.ranks.failures import is_lost_contact
from trainer.ranks.flight_record import dump, is_pending, recent, status
from trainer.ranks.hang_report import Report, explain
from trainer.ranks.runtime import Runtime, timeout_in_force
from trainer.ranks.whereabouts import (
    NEIGHBOUR,
    Stuck,
    fatal_stacks,
    frame_of,
    innermost,
    last_place,
    may_wait,
    place,
    process_name,
    state_of,
    step_of,
    write_stacks,
)

log = logging.getLogger("convoy")
FOLDER, STACKS = "hang", "stacks_{}.txt"
PATIENCE = 0.5
"""Part of parallel.timeout_seconds after which a rank that waits asks what has become of others."""
BEAT_SECONDS, BEATS = 1.0, 8
"""Between two looks at the training thread, of some microseconds each; at least so many of them."""
WAITING, LOST = "ranks wait for each other", "a rank has lost contact"
ANSWER_SECONDS = {WAITING: 10.0, LOST: 3.0}
"""A rank that answers does so at its next look; under lost contact a launcher ends all soon."""


class HangWatch:
    """A thread of each rank that looks now and then whether the one that trains gets on.

    One that has been at the same place in a collective for half of the time-out in force raises an
    alarm in the store. Then every rank that still can writes its stacks and its flight record into
    the run directory and answers; the lowest one that did says who is missing. The run goes on, to
    the end of its time-out or with the rank that was late.
    """

    def __init__(self, runtime: Runtime, folder: Path, step: Callable[[], int]) -> None:
        self.runtime = runtime
        self.folder = folder
        self.step = step
        self.trains = threading.get_ident()
        self.failed: BaseException | None = None
        """What ended the training thread."""
        self.store = own_store()
        self.wake, self.over = threading.Event(), False
        self.thread = threading.Thread(target=self._watch, name="hangs", daemon=True)
        self.number = 0
        """Alarms that this rank has answered."""
        self.store.set(f"process/{runtime.rank}", process_name())

    @property
    def patience(self) -> float:
        """Seconds; more where ranks may be compiling."""
        return PATIENCE * timeout_in_force()

    def _watch(self) -> None:
        at, since, explained = Stuck(0, 0, b""), time.monotonic(), None
        waited, over = 0.0, False
        while not over:
            self.wake.wait(min(BEAT_SECONDS, self.patience / BEATS))
            over = self.over
            try:
                frame = frame_of(self.trains)
                found = Stuck.of(frame, status(self.runtime.backend))
                if found != at:
                    at, since = found, time.monotonic()
                waits = may_wait(frame) or is_pending(found.status)
                waited = time.monotonic() - since if waits and self.failed is None else 0.0
                del frame  # it would keep the tensors in it
                if waited > self.patience and at != explained:
                    self.raise_alarm(WAITING)
                    explained = at
                if self.failed is not None and not self.number:
                    self.raise_alarm(LOST)
                if self.store.check([f"alarm/{self.number}"]):
                    self._answer(waited)
            except Exception as error:  # the store has died with its host, or the run is over
                if waited > self.patience:
                    self._say_alone(waited, error)
                return

    def raise_alarm(self, why: str) -> None:
        self.store.set(f"alarm/{self.number}", why)

    def end(self, failed: BaseException | None) -> None:
        """Leave; of a failure to meet the others in a collective they are told first.

        Gloo aborts a rank that is sent more than it expects, and the others lose contact.
        """
        if failed is not None and is_lost_contact(failed):
            self.failed = failed
        self.over = True  # after one more look, in the other thread: the store may not answer
        self.wake.set()
        self.thread.join(ANSWER_SECONDS[WAITING])

    def _answer(self, waited: float) -> None:
        """Write what this rank knows, tell the others, and say what follows if it is the first.

        Args:
            waited: Seconds that this rank has waited in a collective; 0: it does not.
        """
        number, self.number = self.number, self.number + 1
        report = self._report(waited)
        self.store.set(f"answer/{number}/{self.runtime.rank}", json.dumps(asdict(report)))
        why = self.store.get(f"alarm/{number}").decode()
        reports = self._answers(number, ANSWER_SECONDS[why])
        if self.runtime.rank == min(reports):
            self._say(reports, why)

    def _report(self, waited: float) -> Report:
        frame = frame_of(self.trains) if self.failed is None else innermost(self.failed)
        at, step = place(frame), step_of(frame, self.step())
        self.folder.mkdir(parents=True, exist_ok=True)
        rank = self.runtime.rank
        heading = f"rank {rank}, process {process_name()}, in {step}, at {at}"
        dumped = dump(self.runtime.backend)
        collectives = recent(dumped)
        latest = [f"collective {c.number}: {c}" for c in reversed(collectives)]
        if self.failed is not None:
            heading += "\n\n" + "".join(traceback.format_exception(self.failed))
        write_stacks(self.folder / STACKS.format(rank), heading, latest)
        (self.folder / f"trace_{rank}").write_bytes(dumped)
        numbered = frame.f_code.co_filename != NEIGHBOUR
        return Report(at=at, step=step, waited=waited, collectives=collectives, numbered=numbered)

    def _say_alone(self, waited: float, error: Exception) -> None:
        report = self._report(waited)
        log.error(
            f"{WAITING}: rank {self.runtime.rank} has waited {waited:.0f} s in {report.step} at "
            f"{report.at}, and the store in which ranks meet does not answer ({error}): look at "
            f"the process that holds it. Stacks and flight record are in {self.folder}"
        )

    def _answers(self, number: int, seconds: float) -> dict[int, Report]:
        """What the ranks say that can, as soon as all do."""
        ranks = range(self.runtime.world_size)
        keys = [f"answer/{number}/{rank}" for rank in ranks]
        deadline = time.monotonic() + min(seconds, self.patience)
        while time.monotonic() < deadline and not self.store.check(keys):
            time.sleep(0.05)
        there = [rank for rank in ranks if self.store.check([keys[rank]])]
        return {rank: Report.read(self.store.get(keys[rank]).decode()) for rank in there}

    def _say(self, reports: Mapping[int, Report], why: str) -> None:
        world = self.runtime.world_size
        silent = {
            rank: self.store.get(f"process/{rank}").decode()
            for rank in range(world)
            if rank not in reports and self.store.check([f"process/{rank}"])
        }
        for rank, process in silent.items():
            died = last_place(self.folder / STACKS.format(rank))
            silent[rank] = f"process {process}, {state_of(process)}"
            silent[rank] += f", which died at {died}" if died else ""
        line = explain(reports, silent)
        if line is None:
            return
        line = f"{why}: {line}"
        (self.folder / "explained.txt").write_text(f"{line}\n")
        log.error("%s. Stacks and flight records of the ranks are in %s", line, self.folder)


@contextmanager
def hangs_explained(runtime: Runtime, directory: Path, step: Callable[[], int]) -> Iterator[None]:
    """Inside, ranks that wait too long, or are in different collectives, are told from each other.

    Call it in the thread that trains, on every rank.

    Args:
        runtime: This rank; with one there is nobody to wait for.
        directory: The run's, in which FOLDER is made when it is needed.
        step: Steps taken so far.
    """
    if runtime.world_size == 1:
        yield
        return
    folder = directory / FOLDER
    watch = HangWatch(runtime, folder, step)
    watch.thread.start()
    failed: BaseException | None = None
    try:
        with fatal_stacks(folder / STACKS.format(runtime.rank)):
            yield
    except BaseException as error:
        failed = error
        raise
    finally:
        watch.end(failed)


def own_store() -> Store:
    """The store of the process group by a connection of its own: one that waits for a key serves
    nobody else meanwhile."""
    shared: Any = dist.distributed_c10d._get_default_store()
    return PrefixStore("hangs", shared.clone())
