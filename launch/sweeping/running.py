"""Trials one after the other or side by side, all of them or the better ones further."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from configs.errors import InputError
from launch.sweeping.trial_process import Running, start
from launch.sweeping.trial_progress import status, value_at
from launch.sweeping.trials import Trial
from trainer.ranks.stop_signals import StopRequest

POLL_SECONDS = 0.05


class Stopped(Exception):
    """The sweep was asked to stop; its trials have saved."""


@dataclass(slots=True)
class Runner:
    """Trains trials in their directories; what is finished is not trained again."""

    folder: Path
    arguments: list[str]
    """Of all trials alike, as for launch/train.py."""
    stop: StopRequest
    say: Callable[[str], None]
    ranks: int = 1
    jobs: int = 1
    """Trials side by side."""
    failures: dict[str, str] = field(default_factory=dict)
    """The last words of the trials that failed."""

    def run(
        self, trials: Sequence[Trial], until: Callable[[Trial], bool] = lambda trial: False
    ) -> None:
        """Train trials to their end, or until they have come as far as asked.

        Raises:
            Stopped: If a stop request came; every trial that was running has saved.
            InputError: If a trial refuses its config: the others would too, or are not wanted.
        """
        waiting = [t for t in trials if not (self._is_finished(t) or until(t))]
        running: list[Running] = []
        asked: set[str] = set()
        while waiting or running:
            if self.stop.pending:
                waiting.clear()
            while waiting and len(running) < self.jobs:
                trial = waiting.pop(0)
                self.failures.pop(trial.name, None)
                running.append(start(trial, self.arguments, self.folder, ranks=self.ranks))
            for one in running:
                enough = self.stop.pending or until(one.trial)
                if enough and one.trial.name not in asked and one.process.poll() is None:
                    one.ask_to_stop()
                    asked.add(one.trial.name)
            ended = [one for one in running if one.process.poll() is not None]
            running = [one for one in running if one not in ended]
            for one in ended:
                self._note(one, running)
            time.sleep(POLL_SECONDS)
        if self.stop.pending:
            raise Stopped

    def _is_finished(self, trial: Trial) -> bool:
        return status(self.folder / trial.name) == "completed"

    def _note(self, one: Running, others: Sequence[Running]) -> None:
        name, outcome = one.trial.name, one.outcome
        if outcome == "refused":
            for other in others:
                other.ask_to_stop()
            for other in others:
                other.process.wait()
            raise InputError(f"{name} ({describe(one.trial)}): {one.last_words()}")
        if outcome == "failed":
            self.failures[name] = one.last_words()
        why = f": {one.last_words()}" if outcome == "failed" else ""
        self.say(f"{name}  {describe(one.trial)}  {outcome}{why}")


def describe(trial: Trial) -> str:
    """Its overrides on one line."""
    return "  ".join(f"{key} {value}" for key, value in trial.overrides.items())


def rungs(first: int, factor: int, epochs: int) -> list[int]:
    """Epochs at which a sweep looks at its trials: first, first * factor, ... below `epochs`."""
    found = []
    while first < epochs:
        found.append(first)
        first *= factor
    return found


def halve(
    runner: Runner,
    trials: Sequence[Trial],
    metric: Callable[[], tuple[str, bool]],
    *,
    at: Sequence[int],
    factor: int,
) -> list[Trial]:
    """Successive halving (Jamieson and Talwalkar, arXiv:1502.07943).

    All trials are trained to the first rung with the schedule of their whole length, stopped, and
    the best 1 / factor of them go on from where they were, bit for bit, to the next; the last ones
    to their end. Which go on is decided by what each recorded at the rung, however far it got.

    Args:
        runner: Trains them.
        trials: All of them.
        metric: What decides and whether more is better, once something is recorded.
        at: Epochs of the rungs, ascending.
        factor: How many are left of which one goes on.

    Returns:
        Those that were trained to their end.
    """
    alive = list(trials)
    for epoch in at:
        if len(alive) == 1:
            break
        runner.run(alive, until=partial(_has_reached, runner, metric, epoch))
        name, higher = metric()
        values = {t.name: value_at(runner.folder / t.name, name, epoch) for t in alive}
        kept = math.ceil(len(alive) / factor)
        alive = sorted(alive, key=lambda trial: _badness(values[trial.name], higher))[:kept]
        alive.sort(key=list(trials).index)
        runner.say(
            f"after {epoch} epochs, by {name}: {len(values)} tried, "
            f"{', '.join(trial.name for trial in alive)} go on"
        )
    runner.run(alive)
    return alive


def _has_reached(
    runner: Runner, metric: Callable[[], tuple[str, bool]], epoch: int, trial: Trial
) -> bool:
    """Whether it has recorded an evaluation at that epoch, by whatever name."""
    path = runner.folder / trial.name
    try:
        name, _ = metric()
    except InputError:  # nothing is recorded yet
        return False
    return value_at(path, name, epoch) is not None


def _badness(value: float | None, higher: bool) -> float:
    if value is None or not math.isfinite(value):
        return math.inf
    return -value if higher else value
