"""Gradients of each layer and confusion matrices, as plotly figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from configs.imports import import_extra
from launch.comparing.metric_names import LAYERS
from launch.comparing.panels import ON_ANY_PAGE
from launch.comparing.run_record import RunRecord

KINDS = {"norm": "gradient norm", "update_ratio": "update / weight"}
"""Last parts of the keys under which layers are recorded."""
MOST_STEPS = 400
ROW_PIXELS = 20


def layers_figure(runs: Sequence[RunRecord]) -> Any | None:
    """A map for each run and statistic, one of them shown: a row per parameter, log10 over steps.

    Returns:
        A `plotly.graph_objects.Figure`, or None if no run has recorded its layers.
    """
    figure = import_extra("plotly.graph_objects", "report").Figure()
    buttons: list[dict[str, Any]] = []
    for run in runs:
        for kind, title in KINDS.items():
            ending = f"/{kind}"
            keys = [key for key in run.metrics if key.startswith(LAYERS) and key.endswith(ending)]
            records = [record for record in run.records if any(key in record for key in keys)]
            if not records:
                continue
            records = records[:: math.ceil(len(records) / MOST_STEPS)]
            names = [escape(key.removeprefix(LAYERS).removesuffix(ending)) for key in keys]
            figure.add_heatmap(
                x=[record["step"] for record in records],
                y=list(range(len(keys))),
                z=[[_log10(record.get(key)) for record in records] for key in keys],
                text=[[name] * len(records) for name in names],
                hovertemplate="%{text}<br>step %{x}<br>10^%{z:.2f}<extra></extra>",
                colorscale="Viridis",
                colorbar={"title": {"text": "log10"}, "thickness": 12},
                hoverongaps=False,
                visible=not buttons,
            )
            rows = {"yaxis.tickvals": list(range(len(keys))), "yaxis.ticktext": names}
            height = {"height": 200 + ROW_PIXELS * len(keys)}
            label = escape(f"{run.name}: {title}")
            buttons.append({"label": label, "method": "update", "args": [{}, rows | height]})
    if not buttons:
        return None
    for number, button in enumerate(buttons):
        button["args"][0] = {"visible": [index == number for index in range(len(buttons))]}
    figure.update_layout(
        **ON_ANY_PAGE,
        margin={"l": 10, "r": 10, "t": 60, "b": 40},
        updatemenus=[
            {
                "buttons": buttons,
                "x": 0,
                "xanchor": "left",
                "y": 1,
                "pad": {"b": 10},
                "yanchor": "bottom",
            }
        ],
        xaxis={"title": {"text": "step"}, "showgrid": False},
        yaxis={"autorange": "reversed", "showgrid": False, "automargin": True},
    )
    first: dict[str, Any] = buttons[0]["args"][1]
    figure.update_layout({key.replace(".", "_"): value for key, value in first.items()})
    return figure


def confusion_figure(run: RunRecord) -> Any:
    """Rows are true classes, columns predictions; the colour is the part of the row."""
    figure = import_extra("plotly.graph_objects", "report").Figure()
    classes = [escape(name) for name in class_names(run)]
    size, indices = len(classes), list(range(len(run.confusion)))
    figure.add_heatmap(
        x=indices,
        y=indices,
        z=[[count / max(sum(row), 1) for count in row] for row in run.confusion],
        zmin=0,
        zmax=1,
        showscale=False,
        xgap=1,
        ygap=1,
        colorscale="Blues",
        text=run.confusion,
        texttemplate="%{text}" if size <= 12 else None,
        customdata=[[[truth, guess] for guess in classes] for truth in classes],
        hovertemplate="true %{customdata[0]}<br>predicted %{customdata[1]}<br>"
        "%{text} (%{z:.1%})<extra></extra>",
    )
    ticks: dict[str, Any] = {"showgrid": False, "zeroline": False, "automargin": True}
    if size <= 40:
        ticks |= {"tickvals": indices, "ticktext": [_shortened(name) for name in classes]}
    figure.update_layout(
        **ON_ANY_PAGE,
        height=400,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        xaxis=ticks | {"title": {"text": "predicted"}},
        yaxis=ticks | {"title": {"text": "true"}, "autorange": "reversed"},
    )
    return figure


def most_confused(run: RunRecord, most: int = 3) -> str:
    """The pairs of classes that are taken for each other most often, with their counts."""
    names = class_names(run)
    pairs = [
        (count, names[truth], names[guess])
        for truth, row in enumerate(run.confusion)
        for guess, count in enumerate(row)
        if truth != guess and count > 0
    ]
    pairs.sort(key=lambda pair: -pair[0])
    return "; ".join(f"{truth} taken for {guess}: {count}" for count, truth, guess in pairs[:most])


def class_names(run: RunRecord) -> list[str]:
    """The names of the classes, or their numbers."""
    return run.classes or [str(index) for index in range(len(run.confusion))]


def _shortened(name: str, most: int = 12) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _log10(value: float | None) -> float | None:
    """None for zero too: nothing arrives at the parameter, and the map shows a gap."""
    known = value is not None and math.isfinite(value) and value > 0
    return round(math.log10(value), 3) if known and value is not None else None
