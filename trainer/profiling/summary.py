"""One page about a profile: where the time went, how much of the device was used, what was dear."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.profiling.events import BETWEEN, COMPILED, IDLE, REDUCTION, Breakdown

NUM_OPERATORS = 12
EXPLANATIONS = {
    IDLE: "no operator running: Python, or a launch that waits",
    BETWEEN: "records, evaluation, checkpoints",
    COMPILED: "forward, backward and optimizer as one: compiled, or a CUDA graph",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a trace does not tell."""

    runs_as: str
    """How the run is executed, in a line."""
    global_batches: tuple[int, int]
    """First profiled global batch, and the one after the last."""
    rank: int
    world_size: int
    device: str
    dtype: str
    plain_step_seconds: float | None
    """Time of a step before the profiler began; None if nothing was timed."""
    step_flops: int | None
    """Of one step on one rank; None if they cannot be counted."""
    peak_flops_per_second: float
    """Of a large matrix product on this device in this dtype."""

    @property
    def num_steps(self) -> int:
        return self.global_batches[1] - self.global_batches[0]


def utilisation(found: Breakdown, facts: Facts) -> float:
    """MFU: operations of a step over what a matrix product would have done in its time."""
    seconds = facts.plain_step_seconds or found.total_seconds / facts.num_steps
    return (facts.step_flops or 0) / (seconds * facts.peak_flops_per_second)


def _operations(found: Breakdown, facts: Facts) -> str:
    if facts.step_flops is None:
        return (
            "- Model FLOP utilisation is not known: the operations of sharded weights are not "
            "counted."
        )
    return (
        f"- Model FLOP utilisation {utilisation(found, facts):.1%}: "
        f"{facts.step_flops / 1e9:.4g} GFLOP a step on this rank (torch.utils.flop_counter; matrix "
        "products, convolutions, attention) against "
        f"{facts.peak_flops_per_second / 1e9:.4g} GFLOP/s, the best large {facts.dtype} matrix "
        "product measured on this device at the end of this run."
    )


def markdown(found: Breakdown, facts: Facts) -> str:
    """The page; tables that read well as plain text, too."""
    steps = facts.num_steps
    first, last = facts.global_batches
    profiled = found.total_seconds / steps
    lines = [
        "# Profile",
        "",
        f"{facts.runs_as[:1].upper()}{facts.runs_as[1:]}.",
        "",
        f"Steps {first + 1} to {last} of the run on rank {facts.rank} of "
        f"{facts.world_size}: {facts.device}, {facts.dtype}. Time is divided by what "
        + ("the GPU executed." if found.on_device else "the training thread executed."),
        "",
        *_table(
            ("part of a step", "µs", "%"),
            [
                *(
                    (_explained(part), f"{seconds / steps * 1e6:.1f}", _percent(seconds, found))
                    for part, seconds in found.seconds.items()
                    if seconds or part not in EXPLANATIONS
                ),
                ("whole step, under the profiler", f"{profiled * 1e6:.1f}", "100.0"),
            ],
        ),
        "",
    ]
    if facts.plain_step_seconds is not None:
        lines.append(
            f"- Without the profiler a step took {facts.plain_step_seconds * 1e6:.1f} µs (second "
            "half of the warm-up, by the run's stopwatch): recording an event costs a microsecond "
            "or two, which weighs on small operators and on idle time."
        )
    if facts.world_size > 1:
        exposed, hidden = found.seconds[REDUCTION], found.hidden_reduction_seconds
        share = hidden / ((exposed + hidden) or 1.0)
        lines.append(
            f"- Communication: {exposed / steps * 1e6:.1f} µs a step exposed, which is the row "
            f"reduction: the step waited for it; {hidden / steps * 1e6:.1f} µs hidden behind what "
            f"was computed meanwhile ({share:.0%})."
        )
    lines += [
        _operations(found, facts),
        "",
        *_table(
            ("operator (own time)", "calls a step", "µs a step", "%"),
            [
                (
                    operator.name.replace("|", "/")[:60],
                    f"{operator.calls / steps:g}",
                    f"{operator.seconds / steps * 1e6:.1f}",
                    _percent(operator.seconds, found),
                )
                for operator in found.operators[:NUM_OPERATORS]
            ],
        ),
        "",
        "`trace.json.gz` beside this page opens in https://ui.perfetto.dev or chrome://tracing.",
    ]
    return "\n".join(lines) + "\n"


def _explained(part: str) -> str:
    return f"{part} ({EXPLANATIONS[part]})" if part in EXPLANATIONS else part


def _percent(seconds: float, found: Breakdown) -> str:
    return f"{100 * seconds / found.total_seconds:.1f}"


def _table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """A Markdown table in aligned columns, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]

    def line(cells: tuple[str, ...]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
        return f"| {' | '.join(padded)} |"

    rule = f"|{'-' * (widths[0] + 2)}|{'|'.join('-' * (w + 1) + ':' for w in widths[1:])}|"
    return [line(headings), rule, *map(line, rows)]
