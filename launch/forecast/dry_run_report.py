"""A dry run's report on the screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from configs.visible import plain
from data.loading.order import evaluation_batches
from launch.forecast.dry_run import RankSplit, Report


def show(report: Report) -> None:
    """Print it as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    facts = Table(
        title=plain(f"Dry run of {report.config.name!r}"), show_header=False, title_justify="left"
    )
    for name, value in facts_of(report):
        facts.add_row(name, plain(value))
    console.print(facts)

    memory = Table(title="Memory of one rank", title_justify="left")
    for heading in ("for", "where", "MiB", "how it was found"):
        memory.add_column(heading, justify="right" if heading == "MiB" else "left")
    device = report.runtime.device.type
    for need in report.memory:
        where = device if need.on_device and device != "cpu" else "host"
        memory.add_row(plain(need.purpose), where, _mib(need.num_bytes), plain(need.how))
    memory.add_section()
    for where, total in totals(report).items():
        memory.add_row("all", where, _mib(total), "what one kernel needs in passing not included")
    console.print(memory)
    for note in report.notes:
        console.print(plain(f"Note: {note}."), soft_wrap=True)
    console.print("Every check passed; nothing was started and nothing written.")


def facts_of(report: Report) -> list[tuple[str, str]]:
    """The first table, row by row."""
    config, plan, runtime = report.config, report.plan, report.runtime
    execution = report.execution
    runs_as = [
        (f"runs as: {name}", f"{way} ({execution.because[name]})")
        for name, way in execution.ways.items()
    ]
    rates = ", ".join(f"{name}: {rate:.4g}" for name, rate in report.learning_rates.items())
    epoch_schedule = plan.epoch_schedule
    epochs = epoch_schedule.epochs(report.total_steps)
    an_epoch = " to ".join(
        f"{steps:,}"
        for steps in sorted({epoch_schedule.steps(e) for e, _ in epoch_schedule.batch_sizes})
    )
    proved = ", ".join(str(global_batch + 1) for global_batch in report.proved_global_batches)
    return [
        ("ranks", f"{runtime.world_size:,} ({runtime.backend or 'no process group'})"),
        ("device", f"{runtime.device.type}, as on this machine"),
        ("model", config.model.name),
        ("precision", config.precision.dtype),
        *runs_as,
        ("data", report.data),
        ("run directory", report.directory),
        (
            "steps",
            f"{report.total_steps:,} of {an_epoch} an epoch: {epochs:g} epochs",
        ),
        *((split.name, _split_text(split)) for split in report.splits),
        ("sampler", f"slices of all ranks disjoint and complete in global batches {proved}"),
        ("learning rate", rates),
        *((f"{name} set", _held_out_text(report, name)) for name in report.held_out),
    ]


def _held_out_text(report: Report, name: str) -> str:
    count = report.held_out[name]
    batches = len(evaluation_batches(count, report.config.evaluate.batch_size))
    per_rank = -(-batches // report.runtime.world_size)
    return f"{count:,} samples in {batches} batches, at most {per_rank} on a rank"


def totals(report: Report) -> dict[str, int]:
    """Bytes in host and device memory, over what is known."""
    device = report.runtime.device.type
    found: dict[str, int] = {"host": 0} | ({device: 0} if device != "cpu" else {})
    for need in report.memory:
        found[device if need.on_device and device != "cpu" else "host"] += need.num_bytes or 0
    return found


def _split_text(split: RankSplit) -> str:
    return (
        f"{split.size:,} samples: {_grouped(split.samples, 'sample')}, "
        f"in {_grouped(split.micro_batches, 'micro-batch')}"
    )


def _grouped(values: Sequence[int], unit: str) -> str:
    """`21 samples on 2 ranks, 22 samples on 1 rank`."""
    many = f"{unit}es" if unit.endswith("ch") else f"{unit}s"
    return ", ".join(
        f"{value} {unit if value == 1 else many} on {count:,} rank{'s' if count > 1 else ''}"
        for value, count in sorted(Counter(values).items())
    )


def _mib(num_bytes: int | None) -> str:
    return "?" if num_bytes is None else f"{num_bytes / 2**20:,.2f}"
