"""Which metrics belong on one chart, and the colours of runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from launch.comparing.metric_names import all_metrics, is_held_out, words_of
from launch.comparing.run_record import RunRecord
from launch.comparing.tables import SPEED

Kind = Literal["main", "more", "system"]
COLOURS = (
    "#2f6fd0", "#d9622b", "#1f9a6d", "#b03a8c", "#a07a00", "#6a57c9", "#1893b0", "#c23b4a",
)  # fmt: skip
"""Told apart in print, on a dark screen and by colour-blind readers; groups beyond repeat them."""
SYSTEM = "system/"
RANK = re.compile(r"(rank|gpu)[ _/]?\d+", re.IGNORECASE)
STEP_SECONDS = ("step_seconds", "fastest_step_seconds", "slowest_step_seconds")
NOT_SHOWN = {"correct", "count", "skipped_steps"}


@dataclass(slots=True)
class Panel:
    """One chart."""

    title: str
    keys: list[str]
    """Metrics drawn in it: training first, then held-out data, dashed."""
    log: bool = False
    kind: Kind = "main"
    """`more` for what only some readers want; `system` for what ranks and machines do."""


def panels(runs: Sequence[RunRecord]) -> list[Panel]:
    """Charts of all metrics: the five that every run has, then one for each other metric.

    What differs in the number of its rank or GPU alone is one chart.
    """
    names = all_metrics(runs)
    found = [
        Panel("Loss", [name for name in names if "loss" in words_of(name)], log=True),
        Panel("Accuracy", [name for name in names if {"accuracy", "acc"} & set(words_of(name))]),
        Panel("Learning rate", [name for name in names if _leaf(name) in ("lr", "learning_rate")]),
        Panel("Gradient norm", [name for name in names if _leaf(name) == "grad_norm"], log=True),
        Panel("Samples per second", [name for name in names if _leaf(name) in SPEED]),
    ]
    for panel in found:
        panel.keys.sort(key=is_held_out)
    taken = {key for panel in found for key in panel.keys}
    others: dict[str, Panel] = {}
    for name in names:
        if name not in taken and _leaf(name) not in NOT_SHOWN:
            kind: Kind = "system" if name.startswith(SYSTEM) else "more"
            of_ranks = kind == "system" and _leaf(name) in STEP_SECONDS
            title = "Seconds per step" if of_ranks else RANK.sub(r"every \1", name)
            others.setdefault(title, Panel(title, [], kind=kind)).keys.append(name)
    return [panel for panel in (*found, *others.values()) if panel.keys]


def main_panels(runs: Sequence[RunRecord]) -> list[Panel]:
    """The charts everyone wants; all of them if there are no such."""
    found = panels(runs)
    return [panel for panel in found if panel.kind == "main"] or found


def _leaf(name: str) -> str:
    return name.rpartition("/")[2]
