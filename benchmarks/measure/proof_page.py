"""The page of the proof on a GPU: its tables as Markdown, with pictures beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure.pictures import OURS, THEIRS, peers_figure, tidy
from benchmarks.measure.precisions import precisions_figure
from benchmarks.measure.results import range_text
from configs.visible import visible
from trainer.checkpoints.atomic_files import replacing, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Found = dict[str, Any]
PAGE = "README.md"
TITLES = {
    "checks": "Checks",
    "peers": "The main job and its peers",
    "precisions": "Precisions",
    "networks": "Networks",
    "group": "Collectives of a process group of one rank, recorded or not",
    "resume": "Killed and resumed",
    "sharding": "FSDP2 over one rank, compiled",
}


def write_page(folder: Path, content: Found) -> None:
    """README.md with a section for every part, and the pictures that can be drawn.

    Args:
        folder: Where results.json lies.
        content: What it holds.
    """
    drawn = _draw(folder, content["parts"]) if find_spec("matplotlib") else set[str]()
    lines = [*_heading(content)]
    for name, part in content["parts"].items():
        lines += ["", f"## {TITLES[name]}", ""]
        if name in drawn:
            lines += [f"![{TITLES[name]}]({name}.png)", ""]
        lines += TABLES[name](part)
        if part.get("reason"):
            lines += ["", f"{part['status']}:", "", *_quoted(part["reason"])]
        elif part["status"] == "unfinished":
            lines += ["", "Unfinished: the command was ended here."]
    write_atomically(folder / PAGE, "\n".join(lines) + "\n", durable=False)


def _heading(content: Found) -> list[str]:
    environment, card = content["environment"], content["environment"].get("card")
    packages = environment["packages"]
    versions = ", ".join(f"{name} {found}" for name, found in packages.items() if found)
    dry = content["settings"]["device"] == "cpu"
    commit = environment["git_commit"] or "unknown"
    return [
        "# One GPU, measured",
        "",
        *(["**A dry run on a CPU with small sizes: its figures mean nothing.**", ""] * dry),
        f"- card: {card['name']}, {card['memory_bytes'] / 2**30:.0f} GiB, CUDA {card['cuda']}, "
        f"NCCL {card['nccl']}"
        if card
        else f"- processor: {environment['cpu']}",
        f"- commit: {commit}{', with changes' if environment['git_dirty'] else ''}",
        f"- versions: Python {environment['python']}, {versions}",
        f"- command: `{content['command']}`",
        *(
            f"- continued: `{more['command']}` at {more['git_commit'] or 'an unknown commit'}"
            for more in content.get("continued", [])
        ),
        "",
        "Median and range over interleaved rounds where there are several; the rest was run once.",
    ]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]


def checks_table(part: Found) -> list[str]:
    return [f"`pytest -m gpu`: {part['summary']}."] if "summary" in part else []


def peers_table(part: Found) -> list[str]:
    rows = [
        (
            item["title"],
            range_text(item["epoch_seconds"], 3),
            range_text(item["ratio"]),
            f"{item['compile_seconds']['median']:.1f}",
            f"{item['first_step_seconds']['median']:.1f}",
            f"{item['test_accuracy']['median']:.2%}",
        )
        if item["status"] == "measured"
        else (item["title"], *_why_not(item, 5))
        for item in part.get("contenders", [])
    ]
    columns = ("s an epoch", "times Convoy's", "compiling (s)", "first step (s)", "test accuracy")
    return table(("contender", *columns), rows)


def precisions_table(part: Found) -> list[str]:
    rows = [
        (
            f"{item['network']['hidden']}, batch {item['network']['batch_size']:,}",
            item["precision"],
            item["mode"],
            range_text(item["samples_per_second"], 0),
            range_text(item["tflops"], 1),
            range_text(item["part_of_products"]),
        )
        for item in part.get("cases", [])
    ]
    rows += [
        ("square products", item["precision"], "", "", range_text(item["tflops"], 1), "1")
        for item in part.get("products", [])
    ]
    columns = ("precision", "passes", "samples/s", "TFLOP/s", "part of the products' rate")
    return table(("hidden layers", *columns), rows)


def runs_table(part: Found) -> list[str]:
    """One line for each measured run; MFU against the products' rate if there is one."""
    peak = part.get("products_flops_per_second")
    rows = [
        (
            item["title"],
            item["mode"],
            f"{rate(item):,.0f} {unit(item)}",
            f"{item['step_seconds'] * 1e3:.3f}",
            f"{mfu(item, peak):.1%}" if peak else "",
            f"{item['peak_memory_bytes'] / 2**20:,.0f}",
            f"{item['compile_seconds']:.1f}",
            f"{item['runs_as']['reduction']}; {item['runs_as']['steps']}",
            item["backend"] or "none",
        )
        if item["status"] == "measured"
        else (item["title"], item["mode"], *_why_not(item, 7))
        for item in part.get("rows", [])
    ]
    columns = ("rate", "ms a step", "MFU", "peak MiB", "first steps' delay (s)", "runs as", "group")
    lines = table(("network", "mode", *columns), rows)
    if peak:
        lines += ["", f"MFU is against the {peak / 1e12:,.1f} TFLOP/s of a large product in bf16."]
    return lines


def group_table(part: Found) -> list[str]:
    return [*runs_table(part), "", *map(_same_bits, _by_job(part))]


def resume_table(part: Found) -> list[str]:
    rows = [
        (item["title"], "the same bits" if item["same_bits"] else "OTHER BITS")
        if item["status"] == "measured"
        else (item["title"], *_why_not(item, 1))
        for item in part.get("rows", [])
    ]
    how = "under `deterministic: true`" if part.get("deterministic") else "without that key"
    return [
        *table(("network", f"weights at the end, beside a run left alone, {how}"), rows),
    ]


TABLES: dict[str, Callable[[Found], list[str]]] = {
    "checks": checks_table,
    "peers": peers_table,
    "precisions": precisions_table,
    "networks": runs_table,
    "group": group_table,
    "resume": resume_table,
    "sharding": runs_table,
}


def rate(item: Found) -> float:
    """Samples a second, or tokens."""
    return float(item["samples_per_step"] * (item["tokens_per_sample"] or 1) / item["step_seconds"])


def unit(item: Found) -> str:
    return "tokens/s" if item["tokens_per_sample"] else "samples/s"


def mfu(item: Found, peak: float) -> float:
    return float(item["flops_per_step"] / item["step_seconds"] / peak)


def networks_figure(part: Found) -> Figure:
    """Rates of each network, a bar for each mode with its MFU."""
    from matplotlib.figure import Figure

    by_job = _by_job(part)
    figure = Figure(figsize=(4 * len(by_job), 2.6), layout="constrained")
    for axes, runs in zip(figure.subplots(1, len(by_job), squeeze=False)[0], by_job, strict=True):
        colours = [THEIRS if item["mode"] == "eager" else OURS for item in runs]
        bars = axes.barh(
            [item["mode"] for item in runs], [rate(item) for item in runs], color=colours
        )
        parts = [f"{mfu(item, part['products_flops_per_second']):.0%}" for item in runs]
        axes.bar_label(bars, parts, padding=4, fontsize=8)
        axes.set_xlim(0, 1.2 * max(rate(item) for item in runs))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.tick_params(axis="x", labelsize=7)
        axes.invert_yaxis()
        axes.set_title(runs[0]["title"], fontsize=10)
        axes.set_xlabel(f"{unit(runs[0])} (beside: MFU)")
        tidy(axes)
    return figure


def _draw(folder: Path, parts: Found) -> set[str]:
    """The pictures of parts that have something to show, and their names."""
    figures: dict[str, Callable[[Found], Figure]] = {
        "peers": lambda part: peers_figure(part["contenders"], part["settings"]),
        "precisions": precisions_figure,
        "networks": networks_figure,
    }
    drawn = set()
    for name, draw in figures.items():
        part = parts.get(name, {})
        items = [*part.get("contenders", []), *part.get("rows", []), *part.get("cases", [])]
        if any(item.get("status", "measured") == "measured" for item in items):
            with replacing(folder / f"{name}.png", durable=False) as file:
                draw(part).savefig(file, format="png", dpi=110)
            drawn.add(name)
    return drawn


def _by_job(part: Found) -> list[list[Found]]:
    """The measured runs of each network."""
    jobs: dict[str, list[Found]] = {}
    for item in part.get("rows", []):
        if item["status"] == "measured":
            jobs.setdefault(item["title"], []).append(item)
    return list(jobs.values())


def _same_bits(runs: Sequence[Found]) -> str:
    modes, digests = [item["mode"] for item in runs], {str(item["weights_digest"]) for item in runs}
    if len(runs) < 2:
        return f"- {runs[0]['title']}: nothing to compare."
    how = "the same bits" if len(digests) == 1 else "OTHER BITS"
    return f"- {runs[0]['title']}: {how} after {' and '.join(modes)} steps."


def _why_not(item: Found, cells: int) -> tuple[str, ...]:
    first = (item["reason"] or "").strip().splitlines() or [""]
    last = first[-1] if item["status"] == "failed" else first[0]
    return (f"{item['status']}: {visible(last)[:200]}", *[""] * (cells - 1))


def _quoted(text: str) -> list[str]:
    return ["```", *visible(text.replace("```", "'''")).splitlines()[-40:], "```"]
