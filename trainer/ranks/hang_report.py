"""What ranks that hang say of themselves, and what follows from all of it in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.ranks.flight_record import Collective

Ranks = Mapping[int, "Report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Where one rank is."""

    at: str
    """The line of code."""
    step: str
    """As in `step 31`."""
    waited: float
    """Seconds in a collective; 0 for a rank that is not in one."""
    collectives: list[Collective]
    """That it has begun, the latest ones."""
    numbered: bool = True
    """Whether what it waits in is one of them, and no sum with a neighbour."""

    @classmethod
    def read(cls, text: str) -> Report:
        content = json.loads(text)
        content["collectives"] = [Collective(**found) for found in content["collectives"]]
        return cls(**content)

    def last(self, group: str) -> int:
        """Number of the latest collective in a group; 0: none."""
        return max((c.number for c in self.collectives if c.group == group), default=0)

    def find(self, group: str, number: int) -> Collective | None:
        for collective in reversed(self.collectives):
            if (collective.group, collective.number) == (group, number):
                return collective
        return None


def explain(reports: Ranks, silent: Mapping[int, str]) -> str | None:
    """Who is missing, at which collective of which step.

    Args:
        reports: Of the ranks that answer.
        silent: The others, with what is known of their processes.

    Returns:
        One line without an end; None if nobody is missing.
    """
    if silent:
        who = "; ".join(f"rank {rank} does not answer ({what})" for rank, what in silent.items())
        return who + _awaited(reports)
    return _different(reports) or _missing(reports) or _elsewhere(reports)


def _elsewhere(reports: Ranks) -> str | None:
    """Ranks that do not wait while others do: what goes from rank to rank is not numbered."""
    waits = [rank for rank, report in reports.items() if report.waited]
    others = [rank for rank in reports if rank not in waits]
    if not (waits and others):
        return None
    first = reports[waits[0]]
    where = "; ".join(f"rank {r} is in {reports[r].step} at {reports[r].at}" for r in others)
    return f"{_waiting(waits[0], reports)} in {first.step} at {first.at}; {where}"


def _missing(reports: Ranks) -> str | None:
    """Ranks that have not come to a collective that others have begun."""
    for group in _groups(reports):
        members = {rank: report.last(group) for rank, report in reports.items()}
        members = {rank: last for rank, last in members.items() if last}
        furthest = max(members.values())
        late = [rank for rank, last in members.items() if last < furthest]
        if not late:
            continue
        first = min(members[rank] for rank in late) + 1
        waits = next(rank for rank, last in members.items() if last >= first)
        awaited = reports[waits].find(group, first)
        at = f"collective {first} ({awaited}) of {reports[waits].step}"
        where = "; ".join(
            f"rank {rank} is in {reports[rank].step} at {reports[rank].at}" for rank in late
        )
        return f"{_named(late)} missing at {at}, where {_waiting(waits, reports)}; {where}"
    return None


def _different(reports: Ranks) -> str | None:
    """The first collective that is not the same on all ranks: of another kind, or elsewhere."""
    for group in _groups(reports):
        for tell in ("kind", "place"):
            shared = min(report.last(group) for report in reports.values())
            for number in range(1, shared + 1):
                found = {rank: report.find(group, number) for rank, report in reports.items()}
                known = {rank: c for rank, c in found.items() if c is not None}
                if (
                    len(known) == len(reports)
                    and len({getattr(c, tell) for c in known.values()}) > 1
                ):
                    each = "; ".join(f"rank {rank} in {c}" for rank, c in known.items())
                    steps = ", ".join(dict.fromkeys(r.step for r in reports.values()))
                    return (
                        f"collective {number} is not the same on all ranks, now in {steps}: {each}"
                    )
    return None


def _awaited(reports: Ranks) -> str:
    """Where those are that wait, or else those that answer."""
    for rank in sorted(reports, key=lambda rank: not reports[rank].waited):
        report = reports[rank]
        if not report.numbered:
            who = _waiting(rank, reports) if report.waited else f"rank {rank} was"
            return f"; {who} in {report.step} at {report.at}"
        if report.collectives:
            latest = report.collectives[-1]
            where = f"collective {latest.number} ({latest}) of {report.step}"
            if report.waited:
                return f"; {_waiting(rank, reports)} at {where}"
            return f"; rank {rank} was in {where}"
    return ""


def _waiting(rank: int, reports: Ranks) -> str:
    waited = reports[rank].waited
    return f"rank {rank} has waited" + (f" {waited:.0f} s" if waited else "")


def _named(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]} is"
    return f"ranks {', '.join(map(str, ranks))} are"


def _groups(reports: Ranks) -> list[str]:
    """Of all ranks, in the order of their first collectives."""
    return [*dict.fromkeys(c.group for report in reports.values() for c in report.collectives)]
