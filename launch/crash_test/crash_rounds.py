"""Rounds of a crash test: a run that is killed and started again, compared with one left alone."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from launch.crash_test.kills import kill_at_random
from launch.crash_test.sample_recorder import Deliveries, read_deliveries
from launch.crash_test.scenarios import (
    SCENARIOS,
    TIMEOUT_SECONDS,
    Scenario,
    last_output,
    start_training,
)

MOST_KILLS_OF_A_RUN = 12
WEIGHTS = "run/checkpoints/latest/model.safetensors"


@dataclass(slots=True)
class Round:
    """One run that was killed and started again, and how it compares with one left alone."""

    scenario: str
    kills: dict[str, int] = field(default_factory=dict)
    """Kills by signal, targets and moment."""
    starts: int = 0
    repeated_steps: int = 0
    same_bits: bool = False
    same_samples: bool = False
    seconds: float = 0.0

    @property
    def num_kills(self) -> int:
        return sum(self.kills.values())

    @property
    def is_same(self) -> bool:
        """Whether the weights and the samples of every step are those of the run left alone."""
        return self.same_bits and self.same_samples


def crash_rounds(folder: Path, num_kills: int, generator: random.Random) -> Iterator[Round]:
    """Rounds over all scenarios in turn until `num_kills` kills were dealt.

    Args:
        folder: An empty folder for the runs.
        num_kills: Kills in all.
        generator: Chooses ranks, moments and signals.

    Raises:
        RuntimeError: If a start that was not disturbed fails.
    """
    references: dict[str, Path] = {}
    for number in itertools.count():
        if num_kills <= 0:
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
        found = _disturb(run, scenario, min(num_kills, MOST_KILLS_OF_A_RUN), generator)
        found.seconds = round(time.monotonic() - began, 1)
        _compare(found, run, references[scenario.name])
        num_kills -= found.num_kills
        yield found


def _disturb(run: Path, scenario: Scenario, num_kills: int, generator: random.Random) -> Round:
    """Start, kill, start again ... and let the last start finish."""
    found = Round(scenario.name)
    while True:
        ranks = generator.choice(scenario.ranks)
        process = start_training(run, found.starts, ranks, scenario)
        found.starts += 1
        kind = None
        if found.num_kills < num_kills:
            kind = kill_at_random(process, run, generator, launcher=ranks > 1)
        status = process.wait(TIMEOUT_SECONDS)
        if kind is not None:
            found.kills[kind] = found.kills.get(kind, 0) + 1
        elif status == 0:
            return found
        else:
            raise RuntimeError(f"an undisturbed start failed with {status}: {last_output(run)}")


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
