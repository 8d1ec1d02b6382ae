"""What the page of runs draws: extremes are kept, and a page stays small."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from launch.comparing.comparison import compare
from launch.comparing.html import write_html
from launch.comparing.page_curves import curves_of, knots_of, layers_of, thin
from launch.comparing.panels import panels
from launch.comparing.run_record import RunRecord
from tests.support.sample_runs import Row

SYSTEM = ("step_seconds", "fastest_step_seconds", "slowest_step_seconds", "peak_host_gib")


def noisy(name: str, records: list[Row], **config: object) -> RunRecord:
    return RunRecord(
        name=name, source=name, config={"name": name, **config}, records=records, status="completed"
    )


def test_long_curves_keep_their_extremes() -> None:
    """Law: thinning never hides a spike, keeps both ends, and leaves short curves alone."""
    values = np.zeros(10_001)
    values[5003], values[7001], values[8000] = 9.0, -9.0, math.nan
    kept = thin(values, 100)
    assert len(kept) <= 100
    assert {5003, 7001, 0, 10_000} <= set(kept)
    assert thin(values[:50], 100).tolist() == list(range(50))


def test_a_curve_comes_back_from_what_is_sent() -> None:
    """Law: steps are those recorded, a gap is a gap, and a level stretch is its two ends."""
    values = [1.0, 2.0, 2.0, 2.0, math.inf, 3.0]
    records: list[Row] = [
        {"step": 10 * i + 7, "epoch": i / 4, "a": value} for i, value in enumerate(values)
    ]
    run = noisy("a", records)
    moves, ys = curves_of(run, 100)["a"]
    assert np.cumsum(moves).tolist() == [7, 17, 37, 47, 57]
    assert ys == [1, 2, 2, None, 3]
    assert knots_of(run) == {
        "step": [7, 17, 27, 37, 47, 57], "epoch": [0, 0.25, 0.5, 0.75, 1, 1.25],
    }  # fmt: skip


def test_layers_are_logarithms_and_zero_is_a_gap() -> None:
    records: list[Row] = [
        {"step": i, "gradients/a.weight/norm": 10.0**-i, "gradients/b/c/norm": 0.0}
        for i in range(500)
    ]
    found = layers_of(noisy("a", records), 400)
    assert found is not None
    assert found["names"] == ["a.weight", "b/c"]
    [only] = found["maps"]
    assert (found["steps"][0], found["steps"][-1], len(found["steps"])) == (0, 499, 200)
    assert only["rows"][0][0] == 0
    assert set(only["rows"][1]) == {None}
    assert layers_of(noisy("a", [{"step": 1, "a": 1.0}]), 400) is None


def test_a_page_of_twelve_runs_of_a_thousand_records_is_small(tmp_path: Path) -> None:
    """Law: 1.5 MB at most, with noise in every value of twelve metrics."""
    random = np.random.default_rng(0)
    names = ["train/loss", "train/accuracy", "train/lr", "train/grad_norm", "eval/loss"]
    names += [f"system/{name}" for name in SYSTEM] + ["a", "b", "eval/accuracy"]
    runs = [
        noisy(f"run {number}", [
            {"step": 10 * i, "epoch": i / 97, "elapsed_seconds": i * 0.7123}
            | dict(zip(names, map(float, random.random(len(names))), strict=True))
            for i in range(1000)
        ], seed=number)
        for number in range(12)
    ]  # fmt: skip
    write_html(compare(runs), tmp_path / "report.html")
    assert 200_000 < (tmp_path / "report.html").stat().st_size < 1_500_000


def test_ranks_and_gpus_share_a_panel() -> None:
    """Law: what differs in the number of a rank alone is compared in one chart."""
    names = ["train/loss", "system/rank_0/cpu", "system/rank_1/cpu", "system/gpu 0/memory"]
    names += ["system/step_seconds", "system/slowest_step_seconds", "extra"]
    record = {"step": 1.0} | dict.fromkeys(names, 0.5)
    found = {panel.title: (panel.kind, panel.keys) for panel in panels([noisy("a", [record])])}
    assert found == {
        "Loss": ("main", names[:1]),
        "system/every rank/cpu": ("system", names[1:3]),
        "system/every gpu/memory": ("system", names[3:4]),
        "Seconds per step": ("system", names[4:6]),
        "extra": ("more", names[6:]),
    }
