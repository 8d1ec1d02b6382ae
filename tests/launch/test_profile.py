"""`--profile`: a trace and a page about it, and the same run as without."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import train
from tests.support.runs import assert_same_bits, series
from trainer.profiling.events import (
    BACKWARD,
    FORWARD,
    IDLE,
    REDUCTION,
    STEP,
    break_down,
)
from trainer.profiling.trace import read_trace

pytestmark = pytest.mark.process

Arguments = Callable[..., list[str]]
WARM = ("--profile.warmup_steps=6", "--profile.steps=10", "--logging.every_steps=5")


@pytest.mark.parametrize(
    ("ranks", "more", "rows"),
    [
        (1, (), [10, 15]),  # of five steps: it begins and ends between two
        pytest.param(
            *(2, ("--compile.backward=autograd", "--train.micro_batch_size=6"), [*range(6, 16)]),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_profiled_run_is_the_same_run(
    small: Arguments, tmp_path: Path, ranks: int, more: tuple[str, ...], rows: list[int]
) -> None:
    """Law: the same bits and records with a profiler as without; the parts sum to the whole."""
    train(*small("plain", *WARM, *more), ranks=ranks)
    finished = train(*small("profiled", *WARM, *more, "--profile"), ranks=ranks)
    plain, profiled = tmp_path / "plain", tmp_path / "profiled"
    assert_same_bits(plain, profiled)
    for key in ("train/loss", "eval/loss"):
        assert series(plain, key) == series(profiled, key)
    assert not (plain / "profile").exists()
    assert {p.name for p in (profiled / "profile").iterdir()} == {"trace.json.gz", "summary.md"}

    events = read_trace(profiled / "profile/trace.json.gz")
    steps = sorted(e.name for e in events if e.name.startswith(STEP) and e.kind != "cpu_op")
    assert steps == sorted(f"{STEP}{global_batch}" for global_batch in rows)
    found = break_down(events)
    assert sum(found.seconds.values()) == pytest.approx(found.total_seconds)
    assert found.seconds[FORWARD] > 0
    assert found.seconds[BACKWARD] > 0
    assert found.seconds[IDLE] < found.total_seconds
    assert (found.seconds[REDUCTION] > 0) == (ranks > 1)

    page = (profiled / "profile/summary.md").read_text()
    assert page in finished.stdout
    assert "profiler_start" not in finished.output, "Kineto speaks to its developers"
    assert f"Steps {rows[0] + 1} to {rows[0] + 10} of the run on rank 0 of {ranks}" in page
    assert page.startswith("# Profile\n\nRuns as: engine native, ")
    assert f"reduction {'DDP' if ranks > 1 else 'none'}" in page.splitlines()[2]
    table = page.partition("| operator")[0]
    shares = [float(share) for share in re.findall(r"\| +(\d+\.\d) \|$", table, re.MULTILINE)]
    assert shares.pop() == 100.0
    assert sum(shares) == pytest.approx(100, abs=0.06 * len(shares))
    # 63 x 24, 24 x 16 and 16 x 5 weights: two operations forward and two for the weight gradient,
    # and two more for the gradient of every input but the first.
    samples = 24 / ranks
    flops = samples * (4 * (63 * 24) + 6 * (24 * 16 + 16 * 5))
    assert f"{flops / 1e9:.4g} GFLOP a step" in page
