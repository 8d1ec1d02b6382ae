"""What a projection to more ranks is shown as: tables, a JSON file, a plot."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import InputError

if TYPE_CHECKING:
    from benchmarks.measure.scaling_model import Compute, Fit, Link, Prediction

ASSUMPTIONS = (
    "every link is as fast as the one between two ranks, and no two messages share one",
    "without overlap nothing is sent before the backward pass has ended; with full overlap all of "
    "it goes on behind the backward pass, which is 2/3 of the computing: a real run lies between",
    "all ranks keep the same pace; evaluation and checkpoints are left out",
    "a rank computes as fast as the one rank measured here, which had the machine to itself",
)


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that the predictions are made of, and they themselves."""

    global_batch: int
    gradient_bytes: int
    steps: dict[int, float]
    """Seconds of one rank's step by its number of samples."""
    compute: Compute
    messages: dict[str, Any] | None
    """What `launch/measure_link.py` wrote; None if the link was given."""
    fit: Fit | None
    link: Link
    algorithm: str
    weak: list[Prediction]
    strong: list[Prediction]


def show_scaling(found: Findings) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    link = found.link
    console.print(
        f"Link: {link.latency_seconds * 1e6:.3g} µs, {link.bytes_per_second * 8e-9:.4g} Gbit/s"
        + (f" ({_source(found)})" if found.fit else " (given)")
    )
    console.print(
        f"Gradients: {found.gradient_bytes / 1e6:.4g} MB. A step of one rank: "
        f"{found.compute.overhead_seconds * 1e6:.4g} µs + "
        f"{found.compute.seconds_per_sample * 1e6:.4g} µs a sample."
    )
    laws = (
        ("weak scaling: the batch of a rank stays", found.weak),
        (
            "strong scaling: the global batch stays",
            found.strong,
        ),
    )
    for title, predictions in laws:
        table = Table(title=f"{title} ({found.algorithm}; ms)", title_justify="left")
        for heading in ("ranks", "samples", "compute", "all-reduce", "step", "efficiency"):
            table.add_column(heading, justify="right")
        for heading in ("overlapped", "efficiency"):
            table.add_column(heading, justify="right")
        for item in predictions:
            table.add_row(
                f"{item.ranks:,}",
                f"{item.samples_per_rank:g}",
                _ms(item.compute),
                _ms(item.all_reduce),
                _ms(item.step_without_overlap),
                f"{item.efficiency_without_overlap:.1%}",
                _ms(item.step_with_overlap),
                f"{item.efficiency_with_overlap:.1%}",
            )
        console.print(table)
    for assumption in ASSUMPTIONS:
        console.print(f"Assumed: {assumption}.", soft_wrap=True)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.3f}"


def _source(found: Findings) -> str:
    assert found.fit is not None
    assert found.messages is not None
    given = "" if found.link == found.fit.link else "partly given, else "
    return (
        f"{given}fitted to {found.messages['backend']} on {found.messages['ranks']} ranks, off by "
        f"at most {found.fit.worst_relative_error:.0%} at any size"
    )


def write_scaling(arguments: argparse.Namespace, found: Findings) -> None:
    from trainer.checkpoints.atomic_files import write_atomically
    from trainer.checkpoints.environment import describe_machine

    content = {
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "environment": describe_machine(),
        "config": arguments.scaling_config,
        "options": shlex.split(arguments.scaling_options),
        "assumptions": ASSUMPTIONS,
        **asdict(found),
    }
    path: Path = arguments.scaling_output
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content, indent=2) + "\n")
        plot(found, path.with_suffix(".png"))
    except OSError as error:
        raise InputError(
            "--scaling-output", given=str(path), expected=f"a file to write ({error.strerror})"
        ) from None


def plot(found: Findings, path: Path) -> None:
    """All-reduce time against size where it was measured, and efficiency against ranks."""
    from matplotlib.figure import Figure

    from benchmarks.measure.scaling_model import ring

    figure = Figure(figsize=(11 if found.fit else 6, 4.2), layout="constrained")
    axes = figure.subplots(1, 2 if found.fit else 1, squeeze=False)[0]
    if found.fit is not None and found.messages is not None:
        left, ranks = axes[0], found.messages["ranks"]
        sizes = [item["bytes"] for item in found.messages["all_reduce"]]
        seconds = [item["seconds"] for item in found.messages["all_reduce"]]
        left.loglog(sizes, seconds, "o", label=f"measured, {found.messages['backend']}")
        left.loglog(sizes, [ring(found.fit.link, ranks, size) for size in sizes], label="fitted")
        left.set(xlabel="bytes", ylabel="seconds", title=f"all-reduce on {ranks} ranks")
        left.legend()
    right = axes[-1]
    for name, predictions, colour in (
        ("weak", found.weak, "tab:blue"),
        ("strong", found.strong, "tab:orange"),
    ):
        ranks_of = [item.ranks for item in predictions]
        plain = [item.efficiency_without_overlap for item in predictions]
        hidden = [item.efficiency_with_overlap for item in predictions]
        right.semilogx(ranks_of, plain, color=colour, base=2, label=f"{name}, no overlap")
        right.semilogx(ranks_of, hidden, "--", color=colour, base=2, label=f"{name}, full overlap")
    right.set(xlabel="ranks", ylabel="efficiency", ylim=(0, 1.05), title="predicted, not measured")
    right.legend()
    unfinished = path.with_name(f".new.{path.name}")
    figure.savefig(unfinished, dpi=130)
    unfinished.replace(path)
