"""From what ranks say of themselves to the one line that says who is missing."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from trainer.ranks.flight_record import Collective
from trainer.ranks.hang_report import Report, explain

GRADIENT, LOSS = ("all_reduce", "408"), ("all_reduce", "2x3")


def report(
    *kinds: tuple[str, str], waited: float = 0.0, places: str = "", group: str = "0"
) -> Report:
    collectives = [
        Collective(group, number, *kind, places[number - 1 :][:1])
        for number, kind in enumerate(kinds, start=1)
    ]
    return Report(
        at="nets.py:63 in forward", step="step 31", waited=waited, collectives=collectives
    )


def test_a_rank_that_has_not_come_is_named_with_its_line() -> None:
    ranks = {
        0: report(GRADIENT, LOSS, GRADIENT, waited=60.2),
        1: report(GRADIENT, LOSS),
        2: report(GRADIENT, LOSS, GRADIENT, waited=61),
    }
    assert explain(ranks, {}) == (
        "rank 1 is missing at collective 3 (all_reduce of 408) of step 31, where rank 0 has waited "
        "60 s; rank 1 is in step 31 at nets.py:63 in forward"
    )


def test_several_that_are_late_are_missing_at_the_first_collective_they_miss() -> None:
    ranks = {0: report(GRADIENT, LOSS, waited=9), 1: report(GRADIENT), 2: report(GRADIENT)}
    said = explain(ranks, {}) or ""
    assert said.startswith("ranks 1, 2 are missing at collective 2 (all_reduce of 2x3)")


def test_ranks_in_different_collectives_are_told_apart() -> None:
    """By what they do; or, if that is the same, by the line that asked for it."""
    ranks = {0: report(GRADIENT, LOSS, waited=9), 1: report(GRADIENT, GRADIENT)}
    assert explain(ranks, {}) == (
        "collective 2 is not the same on all ranks, now in step 31: rank 0 in all_reduce of 2x3; "
        "rank 1 in all_reduce of 408"
    )
    ranks = {0: report(*[GRADIENT] * 4, places="aaba"), 1: report(*[GRADIENT] * 3, places="aaa")}
    said = explain(ranks, {}) or ""
    assert said.startswith("collective 3 is not the same")
    assert said.endswith("rank 0 in all_reduce of 408, b; rank 1 in all_reduce of 408, a")


def test_a_rank_that_does_not_answer_is_the_culprit() -> None:
    said = explain({0: report(GRADIENT, waited=60)}, {1: "process 7 on a, stopped by a signal"})
    assert said == (
        "rank 1 does not answer (process 7 on a, stopped by a signal); rank 0 has waited 60 s at "
        "collective 1 (all_reduce of 408) of step 31"
    )
    said = (
        explain({0: report(GRADIENT)}, {1: "process 7 on a, gone, which died at nets.py:3"}) or ""
    )
    assert said.endswith("; rank 0 was in collective 1 (all_reduce of 408) of step 31")


def test_a_sum_with_a_neighbour_is_told_by_its_line() -> None:
    """It is none of the collectives, of which the latest one is over."""
    silent = {1: "process 7 on a, gone"}
    waits = replace(report(GRADIENT, waited=60), numbered=False)
    said = explain({0: waits}, silent) or ""
    assert said.endswith("; rank 0 has waited 60 s in step 31 at nets.py:63 in forward")
    said = explain({0: replace(waits, waited=0.0)}, silent) or ""
    assert said.endswith("; rank 0 was in step 31 at nets.py:63 in forward")


def test_what_is_not_numbered_is_told_by_who_waits() -> None:
    """As gradients that are exchanged from rank to rank under exact reduction."""
    ranks = {0: report(GRADIENT, waited=60), 1: report(GRADIENT)}
    assert explain(ranks, {}) == (
        "rank 0 has waited 60 s in step 31 at nets.py:63 in forward; rank 1 is in step 31 at "
        "nets.py:63 in forward"
    )


def test_nobody_is_blamed_where_all_are_at_one_place() -> None:
    """As in a long evaluation: each waits for the device, not for another."""
    assert explain({0: report(GRADIENT, waited=60), 1: report(GRADIENT, waited=60)}, {}) is None
    assert explain({0: report(waited=60), 1: report(waited=60)}, {}) is None


def test_groups_are_counted_by_themselves() -> None:
    """A rank has no part in a group that it has done nothing in."""
    other = report(GRADIENT, GRADIENT, group="1").collectives
    first, second = report(GRADIENT, waited=5), report(GRADIENT, waited=5)
    first.collectives.extend(other)
    assert explain({0: first, 1: second}, {}) is None


def test_a_report_travels_as_text() -> None:
    sent = report(GRADIENT, LOSS, waited=1.5, places="ab")
    assert Report.read(json.dumps(asdict(sent))) == sent
