"""Trials one after the other or side by side, all of them or the better configs further."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

from configs.errors import InputError
from launch.sweeping.trial_process import Running, start
from launch.sweeping.trial_progress import Watch, read_recorded, status, value_at
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
    metric: Callable[[], tuple[str, bool]]
    """What decides and whether more is better; refuses a metric that what is recorded lacks."""
    ranks: int = 1
    jobs: int = 1
    """Trials side by side."""
    failures: dict[str, str] = field(default_factory=dict)
    """The last words of the trials that failed."""
    watches: dict[str, Watch] = field(default_factory=dict)

    def run(
        self, trials: Sequence[Trial], until: Callable[[Trial], bool] = lambda trial: False
    ) -> None:
        """Train trials to their end, or until they have come as far as asked.

        Raises:
            Stopped: If a stop request came; every trial that was running has saved.
            InputError: If a trial refuses its config: the others would too, or are not wanted. If
                the first one that is completed lacks the metric that is to decide.
        """
        waiting = [t for t in trials if not (self._is_finished(t) or until(t))]
        running: list[Running] = []
        while waiting or running:
            if self.stop.pending:
                waiting.clear()
            while waiting and len(running) < self.jobs:
                trial = waiting.pop(0)
                self.failures.pop(trial.name, None)
                running.append(start(trial, self.arguments, self.folder, ranks=self.ranks))
            for one in running:
                if self.stop.pending or until(one.trial):
                    one.ask_to_stop()
            ended = [one for one in running if one.process.poll() is not None]
            running = [one for one in running if one not in ended]
            for one in ended:
                self._note(one, running)
            time.sleep(POLL_SECONDS)
        if self.stop.pending:
            raise Stopped

    def unfinished(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those that have neither come to their end nor failed: somebody else stopped them."""
        return [t for t in trials if not (self._is_finished(t) or t.name in self.failures)]

    def has_reached(self, epoch: float, trial: Trial) -> bool:
        """Whether it has been evaluated at or after that epoch."""
        watch = self.watches.setdefault(trial.name, Watch(self.folder / trial.name))
        return watch.evaluated() >= epoch

    def _is_finished(self, trial: Trial) -> bool:
        return status(self.folder / trial.name) == "completed"

    def _note(self, one: Running, others: Sequence[Running]) -> None:
        name, outcome = one.trial.name, one.outcome
        try:
            if outcome == "refused":
                raise InputError(f"{name} ({describe(one.trial)}): {one.last_words()}")
            if outcome == "completed":
                self.metric()
        except InputError:
            for other in others:
                other.ask_to_stop()
            for other in others:
                other.process.wait()
            raise
        if outcome == "failed":
            self.failures[name] = one.last_words()
        why = f": {one.last_words()}" if outcome == "failed" else ""
        self.say(f"{name}  {describe(one.trial)}  {outcome}{why}")


def describe(trial: Trial) -> str:
    """Its overrides on one line."""
    return "  ".join(f"{key} {value}" for key, value in trial.overrides.items())


@dataclass(frozen=True, slots=True)
class Halved:
    """What successive halving came to."""

    survivors: list[Trial]
    """Those that were trained to their end."""
    left: dict[str, tuple[int, float | None]]
    """Of each other one, the rung that it did not pass, and its value there."""


def halve(
    runner: Runner, configs: Sequence[Sequence[Trial]], *, at: Sequence[int], factor: int
) -> Halved:
    """Successive halving (Jamieson and Talwalkar, arXiv:1502.07943).

    All trials are trained to the first rung with the schedule of their whole length, stopped, and
    the best 1 / factor of the configs go on from where they were, bit for bit, to the next; the
    last ones to their end. Which go on is decided by what each recorded at the rung, however far it
    got, in the mean over the seeds of a config. A config one of whose trials failed does not go on.

    Args:
        runner: Trains them.
        configs: All trials; those of one config together.
        at: Epochs of the rungs, ascending.
        factor: How many are left of which one goes on.
    """
    alive = list(configs)
    left: dict[str, tuple[int, float | None]] = {}
    for epoch in at:
        if len(alive) <= 1:
            break
        trials = list(chain(*alive))
        runner.run(trials, until=partial(runner.has_reached, epoch))
        runs = read_recorded(runner.folder, trials)
        name, higher = runner.metric()
        values = {run.name: value_at(run, name, epoch) for run in runs}
        badness = [_badness([values.get(trial.name) for trial in one], higher) for one in alive]
        order = sorted(range(len(alive)), key=badness.__getitem__)
        kept = sorted(
            index
            for index in order[: math.ceil(len(alive) / factor)]
            if math.isfinite(badness[index])
        )
        for trial in chain(*(one for index, one in enumerate(alive) if index not in kept)):
            left[trial.name] = epoch, values.get(trial.name)
        tried, alive = len(alive), [alive[index] for index in kept]
        names = ", ".join(trial.name for trial in chain(*alive)) or "none"
        runner.say(f"after {epoch} epochs, by {name}: {tried} tried, {names} go on")
    survivors = list(chain(*alive))
    runner.run(survivors)
    return Halved(survivors, left)


def _badness(values: Sequence[float | None], higher: bool) -> float:
    """Less of it is better; infinite without a number of each."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(known) < len(values):
        return math.inf
    mean = statistics.fmean(known)
    return -mean if higher else mean
