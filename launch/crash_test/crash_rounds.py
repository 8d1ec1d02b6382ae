"""Rounds of a crash test: a run that is killed and started again, compared with one left alone."""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.crash_test.killed_train import SAVE
from launch.crash_test.kills import CALLS, STOP, Kill, Pack, deal, last_call, left_over
from launch.crash_test.sample_recorder import Deliveries, read_deliveries
from launch.crash_test.scenarios import (
    SCENARIOS,
    TIMEOUT_SECONDS,
    Scenario,
    last_output,
    newest_try,
    start_training,
)
from trainer.checkpoints.checkpoint import load_checkpoint
from trainer.checkpoints.checkpoint_folder import newest_good

MOST_KILLS_OF_A_RUN = 10
WEIGHTS = "run/checkpoints/latest/model.safetensors"
VOLATILE = (
    *("time", "elapsed_seconds", "train/samples_per_second", "train/tokens_per_second"),
    "system/",
)
"""What the clock says in a record."""
ROUNDING = 1e-5
"""By how much a loss may differ that other ranks have summed."""
LEAVE_SECONDS = 60.0
"""Ranks whose launcher was killed save, and leave; on a machine that does other things as well."""


@dataclass(slots=True)
class Round:
    """One run that was killed and started again, and how it compares with one left alone."""

    scenario: str
    kills: dict[str, int] = field(default_factory=dict)
    """Kills by signal, targets and moment."""
    calls: list[str] = field(default_factory=list)
    """At which a try killed itself: an audit event of Python and a file, most often."""
    stopped_evaluations: int = 0
    """Requests to stop that came in an evaluation, which the next try had to repeat."""
    starts: int = 0
    repeated_steps: int = 0
    same_bits: bool = False
    same_samples: bool = False
    same_records: bool = False
    left_over: int = 0
    """Processes that outlived a try of theirs."""
    seconds: float = 0.0

    @property
    def num_kills(self) -> int:
        return sum(self.kills.values())

    @property
    def is_same(self) -> bool:
        """Whether weights, samples and records are those of the run left alone; nobody is left."""
        same = self.same_bits and self.same_samples and self.same_records
        return same and not self.left_over


def crash_rounds(
    folder: Path, num_kills: int, generator: random.Random, *, last: float | None = None
) -> Iterator[Round]:
    """Rounds over all scenarios in turn until `num_kills` kills were dealt.

    Args:
        folder: An empty folder for the runs.
        num_kills: Kills in all.
        generator: Chooses ranks, moments and signals.
        last: No round begins after this time of the monotonic clock.

    Raises:
        RuntimeError: If a start that was not disturbed fails.
    """
    references: dict[str, Path] = {}
    pack = Pack(generator)
    for number in itertools.count():
        if num_kills <= 0 or (last is not None and time.monotonic() > last):
            return
        scenario = SCENARIOS[number % len(SCENARIOS)]
        if scenario.name not in references:
            references[scenario.name] = folder / f"reference-{len(references)}"
            undisturbed = start_training(references[scenario.name], 0, scenario.ranks[0], scenario)
            if undisturbed.wait(TIMEOUT_SECONDS) != 0:
                output = last_output(references[scenario.name])
                raise RuntimeError(f"the undisturbed run failed: {output}")
        run = folder / f"round-{number}"
        began = time.monotonic()
        found = _disturb(run, scenario, min(num_kills, MOST_KILLS_OF_A_RUN), pack, generator)
        found.seconds = round(time.monotonic() - began, 1)
        _compare(found, run, references[scenario.name])
        rounding = ROUNDING if len(scenario.ranks) > 1 else 0.0
        records = (read_records(each) for each in (references[scenario.name], run))
        found.same_records = same_records(*records, rounding=rounding)
        num_kills -= found.num_kills
        yield found


def _disturb(
    run: Path, scenario: Scenario, num_kills: int, pack: Pack, generator: random.Random
) -> Round:
    """Start, kill, start again ... and let the last start finish."""
    found = Round(scenario.name)
    while True:
        ranks = generator.choice(scenario.ranks)
        kill = None
        if found.num_kills < num_kills:
            kill = pack.draw(launcher=ranks > 1, workers=scenario.workers)
        crash_at = _crash_at(kill, ranks, generator) if kill else None
        process = start_training(run, found.starts, ranks, scenario, crash_at)
        found.starts += 1
        dealt = kill is not None and deal(kill, process, run, generator, launcher=ranks > 1)
        status = process.wait(TIMEOUT_SECONDS)
        found.left_over += left_over(newest_try(run), LEAVE_SECONDS)
        if kill is not None and dealt:
            found.kills[kill.label] = found.kills.get(kill.label, 0) + 1
            found.calls += [call] if (call := last_call(run)) else []
            found.stopped_evaluations += kill.kind == STOP and _evaluation_is_due(run)
        elif status == 0:
            if kill is not None:
                pack.put_back(kill)
            return found
        else:
            raise RuntimeError(f"an undisturbed start failed with {status}: {last_output(run)}")


def _crash_at(kill: Kill, ranks: int, generator: random.Random) -> str | None:
    """At which call of which rank a run is to kill itself; None: it is killed from outside."""
    if kill.where is None:
        return None
    rank = 0 if kill.where == SAVE else generator.randrange(ranks)  # which alone saves
    return f"{rank} {kill.where} {generator.randint(1, CALLS[kill.where])}"


def _evaluation_is_due(run: Path) -> bool:
    """Whether the next try begins with an evaluation that was stopped."""
    newest, _ = newest_good(run / "run/checkpoints")
    progress = load_checkpoint(newest.path)[1]["progress"] if newest else {}
    return bool(progress.get("evaluation_due") or progress.get("test_due"))


def _compare(found: Round, run: Path, reference: Path) -> None:
    found.same_bits = (run / WEIGHTS).read_bytes() == (reference / WEIGHTS).read_bytes()
    expected, delivered = read_deliveries(reference), read_deliveries(run)
    found.same_samples = same_samples(expected, delivered)
    found.repeated_steps = delivered.num_calls - expected.num_calls


def same_samples(expected: Deliveries, found: Deliveries) -> bool:
    """Whether the last try of every global batch held all its samples, and no try held others."""
    return found.last == expected.last and all(
        ids <= set(expected.last[call]) for call, ids in found.every
    )


def read_records(run: Path) -> list[dict[str, Any]]:
    """The records of a run, evaluations included, without what the clock says."""
    lines = (run / "run/metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not key.startswith(VOLATILE)}
        for line in lines
    ]


def same_records(
    expected: list[dict[str, Any]], found: list[dict[str, Any]], *, rounding: float
) -> bool:
    """Whether both hold the same records in the same order.

    Args:
        expected: Of the run left alone.
        found: Of the other one.
        rounding: Largest relative difference of a value.
    """
    if len(expected) != len(found):
        return False
    return all(
        ours.keys() == theirs.keys()
        and all(
            value == theirs[key] or math.isclose(value, theirs[key], rel_tol=rounding)
            for key, value in ours.items()
        )
        for ours, theirs in zip(expected, found, strict=True)
    )
