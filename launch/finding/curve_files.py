"""A curve of losses and what it suggests, as JSON for scripts and as a picture."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from configs.imports import import_extra
from launch.figure_files import png
from launch.finding.loss_curve import LossCurve, Suggestion
from trainer.checkpoints.atomic_files import write_output


def write_curve(path: Path, curve: LossCurve, suggestion: Suggestion | None) -> None:
    """Write a curve and what it suggests as JSON, for scripts."""
    found = None
    if suggestion is not None:
        found = asdict(suggestion) | {"minimum_over_10": suggestion.tenth}
    content = {
        "learning_rates": curve.learning_rates,
        "losses": curve.losses,
        "smoothed": curve.smoothed,
        "stopped": curve.stopped,
        "suggestion": found,
    }
    write_output(path, json.dumps(content, indent=1) + "\n")


def draw_curve(path: Path, curve: LossCurve, suggestion: Suggestion | None) -> None:
    """Draw a curve and what it suggests as a PNG picture.

    Raises:
        InputError: If matplotlib is not installed.
    """
    # Not pyplot: it has a global state, and may look for a screen.
    figure = import_extra("matplotlib.figure", "report").Figure(
        figsize=(7, 4.5), layout="constrained"
    )
    axes = figure.add_subplot()
    rates = curve.learning_rates
    axes.plot(rates, curve.losses, color="0.8", linewidth=1, label="loss of each batch")
    axes.plot(rates, curve.smoothed, color="tab:blue", label="smoothed")
    if suggestion is not None:
        steepest, tenth = suggestion.steepest, suggestion.tenth
        axes.axvline(
            steepest, color="tab:red", linestyle="--", label=f"steepest descent {steepest:.1e}"
        )
        axes.axvline(tenth, color="tab:green", linestyle=":", label=f"minimum / 10 {tenth:.1e}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", title="Range test")
    if curve.smoothed:
        low, high = min(curve.smoothed), curve.smoothed[0]
        axes.set_ylim(max(low - 0.2 * high, 0), 1.5 * high)  # the explosion at the end is not news
        axes.legend()
    write_output(path, png(figure, dpi=150))
