"""What the doctor says of one thing it looked at, and how it is shown."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from configs.visible import plain, visible
from trainer.checkpoints.atomic_files import write_output
from trainer.checkpoints.environment import describe_machine

Rows = Sequence[dict[str, Any]]
Level = Literal["ok", "note", "warning", "problem"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "problem")
STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One check and what came of it.

    `ok` and `note` are for the record. A `warning` costs time or quality, a `problem` spoils the
    run; both say why it matters and what to change.
    """

    group: str
    """machine, cluster, data or training."""
    check: str
    """Name of the check, such as `shared_memory`."""
    level: Level
    seen: str
    """What was seen, with its numbers."""
    why: str = ""
    """Why it matters."""
    change: str = ""
    """What to change: a flag, a line of code or a setting of the machine."""
    table: list[dict[str, Any]] = field(default_factory=list)
    """Rows with the same keys: the figures behind it."""

    def __post_init__(self) -> None:
        assert self.level in ("ok", "note") or (self.why and self.change), self

    @property
    def needs_attention(self) -> bool:
        return self.level in ("warning", "problem")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is looked at; its methods make what came of it."""

    group: str
    name: str

    def ok(self, seen: str, table: Rows = ()) -> Finding:
        return self.judge("ok", seen, table=table)

    def note(self, seen: str, why: str = "", change: str = "", table: Rows = ()) -> Finding:
        return self.judge("note", seen, why, change, table)

    def warning(self, seen: str, why: str, change: str, table: Rows = ()) -> Finding:
        return self.judge("warning", seen, why, change, table)

    def problem(self, seen: str, why: str, change: str, table: Rows = ()) -> Finding:
        return self.judge("problem", seen, why, change, table)

    def judge(
        self, level: Level, seen: str, why: str = "", change: str = "", table: Rows = ()
    ) -> Finding:
        """A finding of any level."""
        return Finding(self.group, self.name, level, seen, why, change, list(table))


def count(findings: Sequence[Finding], level: Level) -> int:
    return sum(finding.level == level for finding in findings)


def exit_status(findings: Sequence[Finding]) -> int:
    """1 if there is a problem; warnings alone leave 0."""
    return int(count(findings, "problem") > 0)


def name_some(names: Sequence[object], most: int = 6) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(str(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def show(findings: Sequence[Finding]) -> None:
    """Print findings under the name of their group, those that need attention in full."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for group in dict.fromkeys(finding.group for finding in findings):
        console.rule(group, align="left")
        for finding in findings:
            if finding.group != group:
                continue
            seen = Text(f"{finding.check.replace('_', ' ')}: ", style="bold")
            seen.append(visible(finding.seen), style="not bold")
            line = Table.grid(padding=(0, 1))
            line.add_row(Text(f"{finding.level:7}", style=STYLES[finding.level]), seen)
            console.print(line)
            if finding.table:
                console.print(Padding(_table(finding.table), (0, 0, 0, 8)))
            for title, text in (("why", finding.why), ("change", finding.change)):
                if text:
                    console.print(Padding(plain(f"{title}: {text}"), (0, 0, 0, 8)))


def show_summary(findings: Sequence[Finding]) -> None:
    """Print the last line: how many problems and warnings, and which."""
    worst = [finding for finding in findings if finding.needs_attention]
    names = name_some([f"{finding.group}/{finding.check}" for finding in worst], most=8)
    numbers = [(count(findings, level), level) for level in ("problem", "warning")]
    words = ", ".join(f"{number} {level}{'s'[: number != 1]}" for number, level in numbers)
    print(f"{len(findings)} checks: {words}" + (f" ({names})" if names else ""), flush=True)


def write_findings(path: Path, findings: Sequence[Finding]) -> None:
    """The findings and the machine they were made on, as one JSON object."""
    content = {
        "status": exit_status(findings),
        "counts": {level: count(findings, level) for level in LEVELS},
        "findings": [_jsonable(asdict(finding)) for finding in findings],
        "environment": describe_machine(),
    }
    write_output(path, json.dumps(content, indent=2) + "\n")


def _jsonable(value: Any) -> Any:
    """JSON has no word for infinity or not-a-number."""
    if isinstance(value, dict):
        return {key: _jsonable(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(child) for child in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for key, value in rows[0].items():
        table.add_column(plain(key), justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(plain(f"{v:.3g}" if isinstance(v, float) else v) for v in row.values()))
    return table
