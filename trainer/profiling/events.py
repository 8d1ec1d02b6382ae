"""Where the time of a step went: a torch.profiler trace, divided by what its events are called.

The step itself carries no marks. What a moment belongs to follows from the names that torch, DDP
and the communication libraries give their own events, and from their order: after the batch comes
the forward pass, after the backward pass the metrics and the optimizer. An engine that hides its
work from torch may say what it does with `torch.profiler.record_function("step/backward")`, or any
other part of PARTS.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainer.profiling.trace import Event

STEP = "train_step#"
"""Name of the event around one step, before its number."""
REGION = "step/"
"""Name of an event that says itself what it is, before the part."""
DATA, FORWARD, BACKWARD, REDUCTION, OPTIMIZER, METRICS, COMPILED, IDLE, BETWEEN = PARTS = (
    "data",
    "forward",
    "backward",
    "reduction",
    "optimizer",
    "metrics",
    "compiled step",
    "idle",
    "between steps",
)
"""What time is divided into. compiled step: forward, backward and optimizer as one, compiled or a
CUDA graph, which cannot be divided. data: gathering a batch, and what is made ready for several.
idle: no operator runs. between steps: records, evaluation and checkpoints."""

NAMED: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        REDUCTION,
        re.compile(r"c10d::|gloo:|nccl:|nccl|torch::distributed::reducer|record_param_comms"),
    ),
    (BACKWARD, re.compile(r"autograd::engine::evaluate_function|CompiledFunctionBackward")),
    (OPTIMIZER, re.compile(r"Optimizer\.|aten::_fused_(adam|adamw|sgd|adagrad)|aten::_amp_")),
    (DATA, re.compile(r"enumerate\(DataLoader\)|aten::pin_memory")),
    (FORWARD, re.compile(r"DistributedDataParallel\.forward|aten::(cross_entropy|nll)_loss")),
    (METRICS, re.compile(r"aten::argmax$")),
)
COMPILED_REGION = re.compile(r"Torch-Compiled Region|CompiledFunction$|## Call CompiledFxGraph")
WRITTEN_BACKWARD = re.compile(r"aten::(exp|scatter_add_?|\w+_backward)$")
"""Where a backward pass that is written out, without autograd, begins: softmax minus targets."""
AFTER_BACKWARD = re.compile(r"aten::(_foreach_|linalg_vector_norm)")
"""Norms, clipping and averaging of all parameters: the optimizer's, unless a model does them."""
PRODUCT = re.compile(r"(aten::(addmm|mm|_addmm_activation)|mkldnn::_linear_pointwise)$")
"""Without autograd: of the backward pass, if it comes after a part of the gradient was sent; of the
next step in a row, if it comes after the optimizer."""
DEVICE_EVENTS = ("kernel", "gpu_memcpy", "gpu_memset")
ASYNC_COLLECTIVE = re.compile(r"gloo:|nccl:")


@dataclass(frozen=True, slots=True)
class Piece:
    """Time in which one event, and none inside it, was running."""

    start: float
    stop: float
    part: str
    event: Event


@dataclass(frozen=True, slots=True)
class Operator:
    """All calls of one operator or kernel, without what ran inside it."""

    name: str
    calls: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Breakdown:
    """The profiled time, divided; the parts sum to the total."""

    on_device: bool
    """Divided by what the GPU did; else by what the training thread did."""
    seconds: dict[str, float]
    total_seconds: float
    hidden_reduction_seconds: float
    """Time in which ranks exchanged gradients while the backward pass, or a step that cannot be
    divided, went on."""
    operators: tuple[Operator, ...]
    """The most expensive first."""


def break_down(events: Sequence[Event]) -> Breakdown:
    """Divide the time from the first profiled step's begin to the last one's end.

    Raises:
        ValueError: If no step is in the trace.
    """
    steps = sorted(
        (e for e in events if e.name.startswith(STEP) and e.kind == "user_annotation"),
        key=lambda event: event.start,
    )
    if not steps:
        raise ValueError(f"no event {STEP}N in the trace")
    span = steps[0].start, steps[-1].stop
    events = [e for e in events if e.stop > span[0] and e.start < span[1] and e not in steps]
    host = classify(events, steps)
    main = [piece for piece in host if piece.event.thread == steps[0].thread]
    kernels = [event for event in events if event.kind in DEVICE_EVENTS]
    if kernels:
        launched = {piece.event.link: piece.part for piece in host if piece.event.link is not None}
        pieces = [Piece(k.start, k.stop, _kernel_part(k, launched), k) for k in kernels]
        pieces += _outside(steps)
    else:
        collectives = [e for e in events if ASYNC_COLLECTIVE.match(e.name) and not _is_on(e, main)]
        pieces = main + _waits(main, collectives) + _outside(steps)
        kernels = collectives
    seconds, hidden = _sweep(pieces, [k for k in kernels if _named(k.name) == REDUCTION], span)
    return Breakdown(
        on_device=any(event.kind in DEVICE_EVENTS for event in kernels),
        seconds={part: value / 1e6 for part, value in seconds.items()},
        total_seconds=(span[1] - span[0]) / 1e6,
        hidden_reduction_seconds=hidden / 1e6,
        operators=_operators(pieces),
    )


def classify(events: Iterable[Event], steps: Sequence[Event]) -> list[Piece]:
    """What every moment of every host thread belongs to, thread by thread in order of time."""
    threads: dict[int | str, list[Event]] = defaultdict(list)
    for event in events:
        if event.kind in ("cpu_op", "user_annotation"):
            threads[event.thread].append(event)
    divided = any(_named(event.name) == BACKWARD for some in threads.values() for event in some)
    pieces: list[Piece] = []
    for found in threads.values():
        phase = _Phase(divided=divided)
        starts = [step.start for step in steps]
        open_: list[tuple[Event, str, float]] = []  # event, part, where its own time goes on
        for event in sorted(found, key=lambda e: (e.start, -e.stop)):
            while open_ and open_[-1][0].stop <= event.start:
                _close(open_, pieces)
            if not open_ and starts and starts[0] <= event.start:
                phase.current = FORWARD
                while starts and starts[0] <= event.start:
                    starts.pop(0)
            if open_:
                outer, part, since = open_[-1]
                pieces.append(Piece(since, event.start, part, outer))
                own = _named(event.name)
                # A part is as the outermost event says, but for exchanges inside anything.
                inner = own if own is not None and (own == REDUCTION or part == COMPILED) else part
                open_.append((event, inner, event.start))
            else:
                open_.append((event, phase.enter(event), event.start))
        while open_:
            _close(open_, pieces)
    return [piece for piece in pieces if piece.stop > piece.start]


class _Phase:
    """What an operator without a telling name belongs to, by what came before it in the step."""

    def __init__(self, *, divided: bool) -> None:
        self.current = FORWARD
        self.divided = divided
        """Whether autograd tells where the backward pass is."""

    def enter(self, event: Event) -> str:
        """The part of an outermost event; remembers what it says about those that follow."""
        name = event.name
        part = _named(name)
        if part is None and COMPILED_REGION.match(name) and self.current == FORWARD:
            part = FORWARD if self.divided else COMPILED
        if part is None and not self.divided and WRITTEN_BACKWARD.match(name):
            self.current = part = BACKWARD
            return part
        if part is None and not self.divided and PRODUCT.match(name):
            self.current = {REDUCTION: BACKWARD, OPTIMIZER: FORWARD}.get(self.current, self.current)
        if part is None and self.current != FORWARD and AFTER_BACKWARD.match(name):
            part = OPTIMIZER
        if part == DATA:
            self.current = FORWARD
        elif part == REDUCTION:
            self.current = REDUCTION  # adding up what came from other ranks
        elif part in (BACKWARD, METRICS, COMPILED):
            self.current = METRICS
        elif part == OPTIMIZER and "zero_grad" not in name:
            # Clipping goes on until the optimizer has stepped.
            self.current = METRICS if name.startswith("Optimizer.step") else OPTIMIZER
        return part or self.current


def _named(name: str) -> str | None:
    """The part that a name alone tells."""
    if name.startswith(REGION):
        part = name.removeprefix(REGION)
        return part if part in PARTS else None
    return next((part for part, pattern in NAMED if pattern.match(name)), None)


def _close(open_: list[tuple[Event, str, float]], pieces: list[Piece]) -> None:
    """Leave the innermost event: the one around it goes on from here."""
    event, part, since = open_.pop()
    pieces.append(Piece(since, event.stop, part, event))
    if open_:
        outer, outer_part, _ = open_[-1]
        open_[-1] = outer, outer_part, event.stop


def _is_on(event: Event, main: Sequence[Piece]) -> bool:
    return bool(main) and event.thread == main[0].event.thread


def _waits(main: Sequence[Piece], collectives: Sequence[Event]) -> list[Piece]:
    """Time in which the training thread did nothing but wait for the other ranks.

    gloo's events end late, when their work is let go of. So only the time right after a collective
    was begun, or right after the backward pass while one is under way, is waiting.
    """
    found = []
    ordered = sorted(main, key=lambda piece: piece.start)
    for before, after in itertools.pairwise(ordered):
        if before.part not in (BACKWARD, REDUCTION) or after.start <= before.stop:
            continue
        under_way = [c for c in collectives if c.start < after.start and c.stop > before.stop]
        if under_way:
            # Ops of the backward pass that follow mean a pause of the host, not a wait.
            if after.part == BACKWARD or (after.part == REDUCTION and before.part == BACKWARD):
                continue
            found.append(Piece(before.stop, after.start, REDUCTION, under_way[0]))
    return found


def _outside(steps: Sequence[Event]) -> list[Piece]:
    return [
        Piece(before.stop, after.start, BETWEEN, before)
        for before, after in itertools.pairwise(steps)
    ]


def _kernel_part(kernel: Event, launched: dict[int, str]) -> str:
    """By its launcher; a kernel replayed from a CUDA graph has none."""
    own = _named(kernel.name)
    return own or (COMPILED if kernel.link is None else launched.get(kernel.link, COMPILED))


def _sweep(
    pieces: Sequence[Piece], reductions: Sequence[Event], span: tuple[float, float]
) -> tuple[dict[str, float], float]:
    """Microseconds of each part within the span, every moment counted once; and hidden reduction.

    Where several run at once (streams of a GPU), computing comes before exchanging; what happens
    between two steps is counted as that, whatever it is.
    """
    rank = {part: place for place, part in enumerate((BETWEEN, *PARTS[:-2])) if part != REDUCTION}
    rank[REDUCTION] = len(rank)
    marks: list[tuple[float, int, str]] = []
    for piece in pieces:
        start, stop = max(piece.start, span[0]), min(piece.stop, span[1])
        if stop > start:
            marks += [(start, 1, piece.part), (stop, -1, piece.part)]
    for event in reductions:
        start, stop = max(event.start, span[0]), min(event.stop, span[1])
        if stop > start:
            marks += [(start, 1, ""), (stop, -1, "")]
    seconds = dict.fromkeys(PARTS, 0.0)
    running: dict[str, int] = defaultdict(int)
    hidden, now = 0.0, span[0]
    for time, change, part in [*sorted(marks), (span[1], 0, IDLE)]:
        active = [name for name, count in running.items() if count and name]
        winner = min(active, key=rank.__getitem__, default=IDLE)
        seconds[winner] += time - now
        if running[""] and winner in (BACKWARD, COMPILED):
            hidden += time - now
        now = time
        running[part] += change
    return seconds, hidden


def _operators(pieces: Iterable[Piece]) -> tuple[Operator, ...]:
    """Own time by name; regions around operators are none themselves."""
    times: dict[str, float] = defaultdict(float)
    calls: dict[str, set[int]] = defaultdict(set)
    for piece in pieces:
        event = piece.event
        if event.kind != "user_annotation" and piece.part != BETWEEN:
            times[event.name] += piece.stop - piece.start
            calls[event.name].add(id(event))
    ordered = sorted(times, key=times.__getitem__, reverse=True)
    return tuple(Operator(name, len(calls[name]), times[name] / 1e6) for name in ordered)
