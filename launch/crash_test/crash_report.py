"""The outcome of a crash test, as a table and as a JSON file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from launch.crash_test.crash_rounds import Round
from trainer.checkpoints.environment import describe_machine


def show_rounds(rounds: Sequence[Round]) -> None:
    """Print a table with a line for each round."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{sum(item.num_kills for item in rounds)} kills")
    for heading in (
        "run",
        "kills",
        "starts",
        "steps repeated",
        "samples",
        "bits",
        "records",
        "left over",
        "seconds",
    ):
        table.add_column(heading)
    for item in rounds:
        table.add_row(
            item.scenario,
            str(item.num_kills),
            str(item.starts),
            str(item.repeated_steps),
            "same" if item.same_samples else "DIFFERENT",
            "same" if item.same_bits else "DIFFERENT",
            "same" if item.same_records else "DIFFERENT",
            str(item.left_over),
            f"{item.seconds:.0f}",
        )
    Console().print(table)


def write_rounds(path: Path, rounds: Sequence[Round], seed: int) -> None:
    """Write the kills of each kind, every round and the machine; folders are made if need be."""
    kinds: Counter[str] = Counter()
    for item in rounds:
        kinds.update(item.kills)
    result = {
        "kills": kinds.total(),
        "kinds": dict(sorted(kinds.items())),
        "different": sum(not item.is_same for item in rounds),
        "seed": seed,
        "environment": describe_machine(),
        "rounds": [asdict(item) for item in rounds],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
