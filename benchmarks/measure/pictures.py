"""The plots beside the results. matplotlib is imported where it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, THEIRS, FLOOR = "#1f77b4", "#9aa5b1", "#d9822b"
FLOORS = {"products": FLOOR, "Adam": "#f0c27b", "all-reduce": "#8c6bb1"}


def peers_figure(results: Sequence[dict[str, Any]], settings: dict[str, Any]) -> Figure:
    """Seconds of an epoch, one bar per contender, on a logarithmic axis."""
    from matplotlib.figure import Figure

    measured = [item for item in results if item["status"] == "measured"]
    measured.sort(key=lambda item: item["epoch_seconds"]["median"], reverse=True)
    figure = Figure(figsize=(8, 0.42 * len(measured) + 1.4))
    axes = figure.subplots()
    for place, item in enumerate(measured):
        seconds = item["epoch_seconds"]
        ours = item["program"] == "launch/train.py"
        axes.barh(
            place,
            seconds["median"],
            xerr=errors([seconds]),
            color=OURS if ours else THEIRS,
            hatch="//" if item["extrapolated"] else None,
            ecolor="#333333",
            capsize=2,
        )
        label = f" {seconds['median']:,.2f} s"
        if not item["extrapolated"]:
            label += f"  ({item['test_accuracy']['median']:.1%})"
        axes.text(seconds["max"], place, label, va="center", fontsize=8)
    titles = [item["title"] + (" *" if item["extrapolated"] else "") for item in measured]
    axes.set_yticks(range(len(measured)), titles)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    medians = [item["epoch_seconds"]["median"] for item in measured]
    axes.set_xlim(min(medians) / 2, max(medians) * 8)
    axes.set_xlabel("seconds of training per epoch, logarithmic (test accuracy at the end)")
    axes.set_title(
        f"MNIST MLP 784-256-128-10, batch 64 on {settings['device']}; threads: "
        f"{settings['threads']}, epochs: {settings['epochs']}, rounds: {settings['rounds']}",
        fontsize=10,
    )
    if any(item["extrapolated"] for item in measured):
        note = "* trained on a few steps and extrapolated"
        axes.text(1, 0.02, note, transform=axes.transAxes, ha="right", fontsize=8)
    tidy(axes)
    return figure


def growth_figure(series: Sequence[dict[str, Any]]) -> Figure:
    """Samples per second against batch size, width and ranks, a panel each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(series), 3.4))
    for axes, item in zip(figure.subplots(1, len(series), squeeze=False)[0], series, strict=True):
        points = item["points"]
        rates = [point["samples_per_second"] for point in points]
        axes.errorbar(
            [point["value"] for point in points],
            [rate["median"] for rate in rates],
            yerr=errors(rates),
            marker="o",
            capsize=2,
            color=OURS,
        )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(item["title"])
        axes.set_ylabel("samples per second")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_minor_formatter("{x:,.0f}")
        tidy(axes)
    figure.tight_layout()
    return figure


def roofline_figure(result: dict[str, Any]) -> Figure:
    """Left: time of a step above its floors. Right: the roofline of Williams et al. (2009)."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(12, 3.8))
    left, right = figure.subplots(1, 2)
    for place, step in enumerate(result["steps"]):
        start = 0.0
        for name, micros in step["floor_microseconds"].items():
            left.barh(place, micros, left=start, color=FLOORS[name])
            start += micros
        achieved = step["step_microseconds"]
        left.barh(place, achieved["median"], color="none", edgecolor=OURS, linewidth=1.5)
        left.text(
            achieved["median"],
            place,
            f"  {achieved['median']:.0f} µs, {step['times_floor']:.2f} x",
            va="center",
            fontsize=8,
        )
    left.set_yticks(range(len(result["steps"])), [step["title"] for step in result["steps"]])
    left.set_xlim(0, 1.35 * max(step["step_microseconds"]["median"] for step in result["steps"]))
    left.set_xlabel("µs a step: Convoy (outline) and floors (filled)")
    handles = [Patch(color=colour, label=name) for name, colour in FLOORS.items()]
    left.legend(handles=handles, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    _draw_roofs(right, result)
    tidy(left)
    tidy(right)
    figure.tight_layout()
    return figure


def _draw_roofs(axes: Axes, result: dict[str, Any]) -> None:
    bandwidth = result["floors"]["bandwidth_bytes_per_second"]["median"]
    intensities = [2.0**power for power in range(-4, 11)]
    for dtype, colour in (("fp32", OURS), ("bf16", FLOOR)):
        peak = result["floors"][f"peak_{dtype}_flops_per_second"]["median"]
        corners = sorted([*intensities, peak / bandwidth])
        roof = [min(peak, bandwidth * x) / 1e9 for x in corners]
        axes.plot(corners, roof, color=colour, label=f"{dtype}: {peak / 1e9:.0f} Gflop/s")
    for point in result["points"]:
        rate = point["flops_per_second"] / 1e9
        axes.plot(point["flops_per_byte"], rate, "o", color="#333333", markersize=4)
        axes.annotate(
            point["title"],
            (point["flops_per_byte"], rate),
            xytext=(4, -9),
            textcoords="offset points",
            fontsize=7,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("flop per byte moved at the least")
    axes.set_ylabel("Gflop/s")
    axes.legend(fontsize=8, title=f"copy: {bandwidth / 1e9:.1f} GB/s", title_fontsize=8)


def errors(values: Sequence[dict[str, float]]) -> list[list[float]]:
    """How far the range reaches below each median, and above it."""
    return [[v["median"] - v["min"] for v in values], [v["max"] - v["median"] for v in values]]


def tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="both", alpha=0.2)
    axes.set_axisbelow(True)
