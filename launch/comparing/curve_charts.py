"""Curves of runs as one plotly figure, with menus for the axis, smoothing and a log scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from configs.imports import import_extra
from launch.comparing.comparison import Comparison
from launch.comparing.metric_names import is_fraction, is_held_out
from launch.comparing.panels import COLOURS, GRID, ON_ANY_PAGE, Panel
from launch.comparing.run_record import RunRecord
from trainer.records.sinks import Record

MOST_POINTS = 2000
"""Points of a curve; of longer ones the lowest and highest of each interval are kept."""
SMOOTHING = {"no smoothing": 0.0, "0.6": 0.6, "0.9": 0.9, "0.97": 0.97}
"""Weights of the moving average to choose from."""
AXES = {"step": "step", "epoch": "epoch", "time": "elapsed_seconds"}
PANEL_PIXELS, MENU_PIXELS, LEGEND_PIXELS = 240, 130, 24


@dataclass(slots=True)
class _Curve:
    """One line of the figure: a metric of a run in a panel."""

    run: RunRecord
    group: int
    key: str
    row: int
    points: list[Record]
    is_background: bool = False
    """Whether it shows the recorded values, pale, behind a line that may be smoothed."""

    @property
    def is_smoothable(self) -> bool:
        return not is_held_out(self.key) and len(self.points) > 2 and not self.is_background

    @property
    def values(self) -> list[float]:
        return [_rounded(point[self.key]) for point in self.points]


def curves_figure(comparison: Comparison, panels: Sequence[Panel]) -> Any:
    """A `plotly.graph_objects.Figure` with a panel above the other, all over the same axis.

    A click on a name in the legend hides a group of runs in all panels.

    Raises:
        InputError: If plotly is not installed.
    """
    subplots = import_extra("plotly.subplots", "report")
    gap = 70 / (PANEL_PIXELS * len(panels))
    figure = subplots.make_subplots(
        rows=len(panels),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=min(gap, 1 / len(panels)) if len(panels) > 1 else 0,
        subplot_titles=[_title(panel) for panel in panels],
    )
    curves = _curves(comparison, panels)
    named: set[int] = set()
    for curve in curves:
        is_first = curve.group not in named and not curve.is_background
        named |= {curve.group} if is_first else set()
        figure.add_scatter(
            **_appearance(curve, comparison), showlegend=is_first, row=curve.row, col=1
        )
    for row, panel in enumerate(panels, start=1):
        levels = (value for curve in curves if curve.row == row for value in curve.values)
        values = {level for level in levels if math.isfinite(level)}
        axis: dict[str, Any] = {"tickformat": ".0%"} if all(map(is_fraction, panel.keys)) else {}
        if len(values) == 1 and values != {0.0}:
            # Or plotly shows one unit up and down: a rate would seem to be 0.
            axis["range"] = sorted((0, 2 * values.pop()))
        figure.update_yaxes(axis, row=row, col=1)
    figure.update_xaxes(showticklabels=True, **GRID)
    figure.update_yaxes(**GRID)
    figure.update_xaxes(title_text="step", row=len(panels), col=1)
    names = len(comparison.groups) * LEGEND_PIXELS
    panels_height = PANEL_PIXELS * len(panels)
    figure.update_layout(
        **ON_ANY_PAGE,
        height=panels_height + MENU_PIXELS + names + 70,
        margin={"l": 50, "r": 10, "t": MENU_PIXELS, "b": names + 70},
        legend={"orientation": "v", "x": 0, "y": -70 / panels_height, "yanchor": "top"},
        updatemenus=_menus(curves, len(panels), panels_height),
        hoverlabel_namelength=-1,
        dragmode="zoom",
    )
    return figure


def _curves(comparison: Comparison, panels: Sequence[Panel]) -> list[_Curve]:
    found = []
    for row, panel in enumerate(panels, start=1):
        for group, members in enumerate(comparison.groups):
            for run in members.runs:
                for key in panel.keys:
                    points = thin([record for record in run.records if key in record], key)
                    curve = _Curve(run, group, key, row, points)
                    if curve.is_smoothable:
                        found.append(_Curve(run, group, key, row, points, is_background=True))
                    if points:
                        found.append(curve)
    return found


def _appearance(curve: _Curve, comparison: Comparison) -> dict[str, Any]:
    group = comparison.groups[curve.group]
    count = len(group.runs)
    held_out = is_held_out(curve.key)
    run = escape(curve.run.name)
    shown: dict[str, Any] = {
        "x": _positions(curve, "step"),
        "y": curve.values,
        "mode": "lines+markers" if held_out or len(curve.points) < 3 else "lines",
        "line": {
            "color": COLOURS[curve.group % len(COLOURS)],
            "width": 2,
            "dash": "dash" if held_out else "solid",
        },
        "marker": {"size": 5},
        "name": escape(group.name) + (f" ({count} seeds)" if count > 1 else ""),
        "legendgroup": str(curve.group),
        "opacity": 0.75 if count > 1 else 1.0,
        "hovertemplate": f"%{{x:,.5~g}}: %{{y:.5g}}<extra>{run.replace('%', '&#37;')}</extra>",
    }
    if curve.is_background:
        shown |= {"opacity": 0.25, "hoverinfo": "skip", "hovertemplate": None}
    return shown


def _menus(curves: Sequence[_Curve], rows: int, height: int) -> list[dict[str, Any]]:
    """Three rows of buttons above the panels."""
    records = [point for curve in curves for point in curve.points]
    bottom = "xaxis" if rows == 1 else f"xaxis{rows}"
    by_axis = [
        {
            "label": f"by {name}",
            "method": "update",
            "args": [
                {"x": [_positions(curve, name) for curve in curves]},
                {f"{bottom}.title.text": "training time (s)" if name == "time" else name},
            ],
        }
        for name, key in AXES.items()
        if any(key in record for record in records)
    ]
    smoothed = [index for index, curve in enumerate(curves) if curve.is_smoothable]
    by_weight = [
        {
            "label": label,
            "method": "restyle",
            "args": [{"y": [smooth(curves[i].values, weight) for i in smoothed]}, smoothed],
        }
        for label, weight in SMOOTHING.items()
    ]
    axes = ["yaxis", *(f"yaxis{row}" for row in range(2, rows + 1))]
    by_scale = [
        {
            "label": f"{kind} scale",
            "method": "relayout",
            "args": [{f"{axis}.type": kind for axis in axes}],
        }
        for kind in ("linear", "log")
    ]
    menus = [by_axis, by_weight if smoothed else [], by_scale]
    return [
        {
            "type": "buttons",
            "direction": "right",
            "buttons": buttons,
            "x": 0,
            "xanchor": "left",
            "y": 1 + (MENU_PIXELS - 34 * row) / height,
            "yanchor": "top",
            "pad": {"t": 0, "b": 0},
            "font": {"size": 11},
            "bgcolor": "rgba(128,136,150,0.12)",
            "bordercolor": "rgba(128,136,150,0.4)",
        }
        for row, buttons in enumerate(menus)
        if buttons
    ]


def _title(panel: Panel) -> str:
    if not panel.main:
        return escape(panel.title)
    kinds = [f"{key}{', dashed' if is_held_out(key) else ''}" for key in panel.keys]
    return escape(f"{panel.title} ({'; '.join(kinds)})")


def _positions(curve: _Curve, axis: str) -> list[float | None]:
    found = [point.get(AXES[axis]) for point in curve.points]
    return [None if value is None else _rounded(value) for value in found]


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """Exponential moving average without the bias of its start; a gap stays a gap."""
    mean, count, found = 0.0, 0, []
    for value in values:
        if math.isfinite(value):
            mean = weight * mean + (1 - weight) * value
            count += 1
            value = _rounded(mean / (1 - weight**count))
        found.append(value)
    return found


def thin(points: Sequence[Record], key: str, most: int = MOST_POINTS) -> list[Record]:
    """Keep at most `most` records: the lowest and highest value of each interval, and the ends."""
    if len(points) <= most:
        return list(points)
    interval = math.ceil(2 * len(points) / (most - 2))
    kept = {0, len(points) - 1}
    for start in range(0, len(points), interval):
        indices = range(start, min(start + interval, len(points)))
        kept |= {
            min(indices, key=lambda i: points[i][key]),
            max(indices, key=lambda i: points[i][key]),
        }
    return [points[index] for index in sorted(kept)]


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
