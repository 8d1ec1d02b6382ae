"""What a page draws of a run: its curves and its layers, in as few numbers as are seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from launch.comparing.metric_names import LAYERS
from launch.comparing.run_record import RunRecord

if TYPE_CHECKING:
    from trainer.records.sinks import Record

MOST_POINTS, FEWEST_POINTS = 1000, 120
"""Of a curve."""
ALL_POINTS = 60_000
"""Of all curves of a page together: about a megabyte."""
MOST_KNOTS = 200
KINDS = {"norm": "gradient norm", "update_ratio": "update / weight"}
"""Last parts of the keys under which layers are recorded."""
MOST_STEPS, FEWEST_STEPS, ALL_CELLS = 200, 20, 60_000
"""Columns of a map of layers, and cells of all maps of a page together."""
Floats = NDArray[np.float64]


def points_per_curve(runs: Sequence[RunRecord], most: int = ALL_POINTS) -> int:
    """How many points each curve of a page gets, of so many for all of them together."""
    curves = sum(not name.startswith(LAYERS) for run in runs for name in run.metrics)
    return min(max(most // max(curves, 1), FEWEST_POINTS), MOST_POINTS)


def curves_of(run: RunRecord, most: int) -> dict[str, list[list[float | None]]]:
    """Every metric but those of layers: [step, steps to the next, ...], [value, ...].

    A value that is not finite is None.
    """
    found = {}
    for name in run.metrics:
        if not name.startswith(LAYERS):
            points = np.array(run.points(name), dtype=np.float64)
            kept = bends(points[thin(points[:, 1], most)])
            steps: list[float | None] = [number(x) for x in np.diff(kept[:, 0], prepend=0.0)]
            found[name] = [steps, [number(value) for value in kept[:, 1]]]
    return found


def thin(values: Floats, most: int) -> NDArray[np.int64]:
    """Indices of at most `most` values: the lowest and highest of each interval, and the ends.

    Args:
        values: `(n,)`; one that is not finite is kept as a gap if its interval has no other.
    """
    count = len(values)
    if count <= most:
        return np.arange(count)
    width = math.ceil(2 * count / (most - 2))
    whole = math.ceil(count / width) * width
    padded = np.full(whole, np.nan)
    padded[:count] = np.where(np.isfinite(values), values, np.nan)
    rows = padded.reshape(-1, width)
    starts = np.arange(len(rows)) * width
    lowest = np.where(np.isnan(rows), np.inf, rows).argmin(1) + starts
    highest = np.where(np.isnan(rows), -np.inf, rows).argmax(1) + starts
    return np.unique(np.concatenate([[0, count - 1], lowest, highest]))


def bends(points: Floats) -> Floats:
    """`(n, 2)` points without those in the middle of a level stretch, which draw nothing."""
    values = points[:, 1]
    level = (values[1:-1] == values[:-2]) & (values[1:-1] == values[2:])
    kept: Floats = points[np.concatenate([[True], ~level, [True]])[: len(points)]]
    return kept


def knots_of(run: RunRecord) -> dict[str, list[float | None]]:
    """Where a run's steps stand in epochs and in seconds of training, to be interpolated between.

    Returns:
        `step`, and `epoch` and `time` as far as they are recorded.
    """
    names = {"step": "step", "epoch": "epoch", "time": "elapsed_seconds"}
    shared = {name: key for name, key in names.items() if any(key in r for r in run.records)}
    records = [record for record in run.records if all(key in record for key in shared.values())]
    kept = [records[i] for i in _spaced(len(records), MOST_KNOTS)]
    return {name: [number(record[key]) for record in kept] for name, key in shared.items()}


def layers_of(run: RunRecord, cells: int) -> dict[str, Any] | None:
    """Gradients of each parameter over the steps, as logarithms to the base of ten.

    Args:
        run: Any run.
        cells: About how many numbers its maps may have.

    Returns:
        {"steps": [step], "names": [parameter], "maps": [{"title", "rows": [[number or None]]}]};
        None if the run has not recorded its layers.
    """
    suffixes = tuple(f"/{kind}" for kind in KINDS)
    keys = [key for key in run.metrics if key.startswith(LAYERS) and key.endswith(suffixes)]
    records = [record for record in run.records if any(key in record for key in keys)]
    if not records:
        return None
    names = list(dict.fromkeys(key.removeprefix(LAYERS).rpartition("/")[0] for key in keys))
    most = min(max(cells // len(keys), FEWEST_STEPS), MOST_STEPS)
    records = [records[i] for i in _spaced(len(records), most)]
    maps = []
    for kind, title in KINDS.items():
        rows = [[_log10(record, f"{LAYERS}{name}/{kind}") for record in records] for name in names]
        if any(value is not None for row in rows for value in row):
            maps.append({"title": title, "rows": rows})
    return {"steps": [record["step"] for record in records], "names": names, "maps": maps}


def number(value: float) -> float | None:
    """As many digits as are seen, and None for what JSON lacks."""
    if not math.isfinite(value):
        return None
    whole = float(value).is_integer() and abs(value) < 1e15
    return int(value) if whole else float(f"{value:.{5 if abs(value) < 10_000 else 8}g}")


def _spaced(count: int, most: int) -> list[int]:
    """At most `most` of so many indices, evenly, with both ends."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _log10(record: Record, key: str) -> float | None:
    """None for zero too: nothing arrives at the parameter, and the map shows a gap."""
    value = record.get(key, 0.0)
    return round(math.log10(value), 2) if math.isfinite(value) and value > 0 else None
