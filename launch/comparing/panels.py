"""Which metrics belong on one chart, and the colours of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launch.comparing.metric_names import all_metrics, is_held_out, words_of
from launch.comparing.run_record import RunRecord
from launch.comparing.tables import SPEED

COLOURS = (
    "#2f6fd0", "#d9622b", "#1f9a6d", "#b03a8c", "#a07a00", "#6a57c9", "#1893b0", "#c23b4a",
)  # fmt: skip
"""Told apart in print, on a dark screen and by colour-blind readers; groups beyond repeat them."""
ON_ANY_PAGE = {
    "template": "plotly_white",
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"color": "#7c8796"},
    "hoverlabel": {"font": {"color": "#ffffff"}},
}
"""Layout of a chart that shows what is behind it: the page is light or dark, as the reader's system
is, and the grey of the texts reads well on both."""
GRID = {"gridcolor": "rgba(128,136,150,0.25)", "zerolinecolor": "rgba(128,136,150,0.5)"}
NOT_SHOWN = {"correct", "count", "skipped_steps"}


@dataclass(slots=True)
class Panel:
    """One chart."""

    title: str
    keys: list[str]
    """Metrics drawn in it: training first, then held-out data, dashed."""
    log: bool = False
    main: bool = True
    """False for what only some readers want."""


def panels(runs: Sequence[RunRecord]) -> list[Panel]:
    """Charts of all metrics: the five that every run has, then one for each other metric."""
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
    found += [
        Panel(name, [name], main=False)
        for name in names
        if name not in taken and _leaf(name) not in NOT_SHOWN
    ]
    return [panel for panel in found if panel.keys]


def main_panels(runs: Sequence[RunRecord]) -> list[Panel]:
    """The charts everyone wants; all of them if there are no such."""
    found = panels(runs)
    return [panel for panel in found if panel.main] or found


def _leaf(name: str) -> str:
    return name.rpartition("/")[2]
