"""The outcome of a crash test, as a table and as a JSON file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.crash_test.crash_rounds import Round


def show_rounds(rounds: Sequence[Round]) -> None:
    """Print a table with a line for each round, and how many kills of each kind there were."""
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
    kinds = Table(title="kinds")
    kinds.add_column("kill")
    kinds.add_column("number", justify="right")
    for kind, number in sorted(count_kinds(rounds).items()):
        kinds.add_row(kind, str(number))
    Console().print(table, kinds)


def count_kinds(rounds: Sequence[Round]) -> Counter[str]:
    """Kills by signal, targets and moment."""
    kinds: Counter[str] = Counter()
    for item in rounds:
        kinds.update(item.kills)
    return kinds


def write_rounds(
    path: Path, rounds: Sequence[Round], seed: int, environment: dict[str, Any]
) -> None:
    """Write the kills of each kind, every round and the machine; folders are made if need be."""
    kinds = count_kinds(rounds)
    result = {
        "kills": kinds.total(),
        "kinds": dict(sorted(kinds.items())),
        "stopped_evaluations": sum(item.stopped_evaluations for item in rounds),
        "different": sum(not item.is_same for item in rounds),
        "seed": seed,
        "environment": environment,
        "rounds": [asdict(item) for item in rounds],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
