"""Raw rows of a run's history -> numbers, one record per step, each step once."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.records.sinks import Record


AXES = ("step", "epoch", "time", "elapsed_seconds")
"""Keys of a record that say where it stands; all others are metrics."""
MOST = 2.0**1023
"""Whole numbers have no end in JSON; what is larger becomes infinite."""
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""How W&B writes numbers that JSON has no word for."""


@dataclass(slots=True)
class History:
    """Records in the order of their steps, no step twice.

    Rows of one step are merged. A row whose step is below the one before it comes from a restart:
    what the earlier try recorded from that step on is void.
    """

    records: list[Record] = field(default_factory=list)
    repeated: int = 0
    """Records left out because a restart took their steps again."""

    def add(self, row: Record) -> None:
        """Take the numbers of the next row, of which one is its `step`."""
        step, records = row["step"], self.records
        if records and step < records[-1]["step"]:
            cut = bisect.bisect_left(records, step, key=lambda record: record["step"])
            self.repeated += len(records) - cut
            del records[cut:]
        if records and step == records[-1]["step"]:
            records[-1] |= row
        else:
            records.append(dict(row))


def numbers(row: dict[str, Any]) -> Record:
    """The numbers of a row; text, histograms, images and the like are left out."""
    found: Record = {}
    for key, value in row.items():
        if isinstance(value, str):
            value = _WORDS.get(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            too_large = isinstance(value, int) and abs(value) >= MOST
            found[key] = (math.inf if value > 0 else -math.inf) if too_large else value
    return found


def build_history(rows: Iterable[Record]) -> History:
    """Order rows by step, so that of steps taken twice only the latest try is left.

    Args:
        rows: Numbers with a `step`, in the order in which they were written.
    """
    history = History()
    for row in rows:
        history.add(row)
    return history


def from_wandb(rows: Sequence[dict[str, Any]]) -> list[Record]:
    """Rows as W&B keeps them -> rows with `step`, `time` and `elapsed_seconds`.

    The step is the row's own `step` if every row has one, else W&B's count of rows. A `step` that
    starts again in every epoch counts batches, not optimizer steps, and is not used either.
    """
    found = [numbers(row) for row in rows]
    found = [row for row in found if any(not _is_internal(key) for key in row)]
    own_step = all("step" in row for row in found) and not _starts_again_in_epochs(found)
    converted = []
    for index, row in enumerate(found):
        record = {key: value for key, value in row.items() if not _is_internal(key)}
        if not own_step:
            record["step"] = row.get("_step", index)
        for key, internal in (("time", "_timestamp"), ("elapsed_seconds", "_runtime")):
            if key not in record and internal in row:
                record[key] = row[internal]
        converted.append(record)
    return converted


def _starts_again_in_epochs(rows: list[Record]) -> bool:
    """A restart goes back in epochs as well; a step within an epoch does not."""
    return any(
        later["step"] < earlier["step"] and later.get("epoch", 0) > earlier.get("epoch", 0)
        for earlier, later in itertools.pairwise(rows)
    )


def _is_internal(key: str) -> bool:
    return key.startswith("_")
