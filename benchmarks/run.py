"""Measure Convoy against its peers, its options, its growth and its floors.

    python launch/benchmark.py                # every peer and every mode, interleaved rounds
    python launch/benchmark.py --quick        # one short round, a few minutes
    python launch/benchmark.py --text         # the language model: tokens/s, loss after as many
    python launch/benchmark.py --options      # what exactness, checkpoints and drift checks cost
    python launch/benchmark.py --finite       # what looking for NaN costs, epoch by epoch
    python launch/benchmark.py --growth       # samples/s against batch size, width and ranks
    python launch/benchmark.py --roofline     # a step against its matrix products, Adam, all-reduce
    python launch/benchmark.py --precision    # fp32, tf32, bf16, fp16, small and wide MLP
    python launch/benchmark.py --seeds 20 --config mnist_fast    # recipes (a,b,c), mean and spread
    python launch/benchmark.py --compile      # cold and warm starts, whole and block by block
    python launch/benchmark.py --loader       # samples/s of data sets against workers, and pinning
    python launch/benchmark.py --sharded-memory      # of a rank that holds an eighth of a model
    python launch/benchmark.py --project-scaling     # what up to 1,024 ranks would reach
    python benchmarks/run.py gpu --seconds 480       # everything about one GPU (gpu --help)

The contenders train the same network on the same data in turn, each as a process of its own, so
that a machine that drifts slows all of them. Times are of training: evaluation is left out. The
result goes to benchmarks/results as JSON, with the hardware, the versions and the commit, and a
picture beside it.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends what imports, without a traceback

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.measure import results
from benchmarks.measure.benchmark_options import described, parse_options
from benchmarks.measure.compile_starts import measure_starts, show_starts
from benchmarks.measure.contenders import TEXT, Settings, choose
from benchmarks.measure.finite_cost import benchmark_finite
from benchmarks.measure.growth import measure_growth, points, show_growth
from benchmarks.measure.loaders import measure_loaders, show_loaders
from benchmarks.measure.option_costs import compare_options, show_options
from benchmarks.measure.peers import compare, show_peers, show_text
from benchmarks.measure.pictures import growth_figure, peers_figure, roofline_figure
from benchmarks.measure.precisions import (
    all_cases,
    measure_precisions,
    precisions_figure,
    show_precisions,
)
from benchmarks.measure.proof import prove
from benchmarks.measure.roofline import measure_roofline, show_roofline
from benchmarks.measure.scaling_bench import project_scaling
from benchmarks.measure.seeds import measure_seeds, seeds_figure, show_seeds
from benchmarks.measure.sharded_memory import measure_sharded_memory, show_sharded_memory
from launch.entry import run_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def main(argv: Sequence[str]) -> int:
    """Measure what the options ask for; status 1 if a contender failed."""
    # The run that is being measured is in a session of its own: leaving in order takes it along.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if argv[:1] == ["gpu"]:
        return prove(argv[1:])
    arguments = parse(argv)
    return MEASUREMENTS[arguments.kind](arguments)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options of `launch/benchmark.py`, with their defaults filled in."""
    return parse_options(argv, __doc__ or "", MEASUREMENTS)


def benchmark_peers(arguments: argparse.Namespace) -> int:
    """Every contender: table, JSON, bars. Status 1 if one of them failed."""
    chosen = choose(arguments.only, arguments.device)
    found = compare(chosen, settings(arguments), arguments.rounds, arguments.seconds)
    show_peers(found)
    write(arguments, {"contenders": found}, lambda: peers_figure(found, described(arguments)))
    return 1 if any(item["status"] == "failed" for item in found) else 0


def benchmark_text(arguments: argparse.Namespace) -> int:
    """The contenders of the language model: table and JSON. Status 1 if one of them failed."""
    from benchmarks.peers.text_common import CONTEXT, load_text

    found = compare(
        choose(arguments.only, arguments.device, TEXT),
        settings(arguments),
        arguments.rounds,
        arguments.seconds,
    )
    show_text(found, len(load_text()[0]) * CONTEXT)
    write(arguments, {"contenders": found})
    return 1 if any(item["status"] == "failed" for item in found) else 0


def benchmark_options(arguments: argparse.Namespace) -> int:
    found = compare_options(
        rounds=arguments.rounds, steps=arguments.steps, threads=arguments.threads
    )
    show_options(found)
    write(arguments, {"results": found})
    return 0


def benchmark_growth(arguments: argparse.Namespace) -> int:
    found = measure_growth(
        points(arguments.threads),
        rounds=arguments.rounds,
        threads=arguments.threads,
        device=arguments.device,
        quick=arguments.quick,
    )
    show_growth(found)
    write(arguments, {"series": found}, lambda: growth_figure(found))
    return 0


def benchmark_roofline(arguments: argparse.Namespace) -> int:
    found = measure_roofline(
        settings(arguments), arguments.rounds, series=5 if arguments.quick else 25
    )
    show_roofline(found)
    write(arguments, found, lambda: roofline_figure(found))
    return 0


def benchmark_seeds(arguments: argparse.Namespace) -> int:
    found = measure_seeds(
        arguments.config.split(","),
        seeds=arguments.seeds,
        threads=arguments.threads,
        overrides=[f"--parallel.device={arguments.device}", *(f"--{s}" for s in arguments.set)],
    )
    show_seeds(found)
    write(arguments, {"recipes": found}, lambda: seeds_figure(found))
    return 0


def benchmark_precisions(arguments: argparse.Namespace) -> int:
    cases = all_cases(arguments.device)
    found = measure_precisions(cases, **amount(arguments), seconds=arguments.seconds)
    show_precisions(found)
    write(arguments, found, lambda: precisions_figure(found))
    return 0


def benchmark_loaders(arguments: argparse.Namespace) -> int:
    found = measure_loaders(**amount(arguments))
    show_loaders(found)
    write(arguments, found)
    return 0


def benchmark_sharded_memory(arguments: argparse.Namespace) -> int:
    found = measure_sharded_memory(quick=arguments.quick, threads=arguments.threads)
    show_sharded_memory(found)
    write(arguments, found)
    return 0


def benchmark_compile_starts(arguments: argparse.Namespace) -> int:
    found = measure_starts(**amount(arguments), seconds=arguments.seconds)
    show_starts(found)
    write(arguments, {"ways": found})
    return 0


MEASUREMENTS: dict[str, Callable[[argparse.Namespace], int]] = {
    "peers": benchmark_peers,
    "text": benchmark_text,
    "options": benchmark_options,
    "finite": lambda arguments: benchmark_finite(arguments, write),
    "growth": benchmark_growth,
    "roofline": benchmark_roofline,
    "precisions": benchmark_precisions,
    "loaders": benchmark_loaders,
    "sharded_memory": benchmark_sharded_memory,
    "compile_starts": benchmark_compile_starts,
    "seeds": benchmark_seeds,
    "project_scaling": project_scaling,
}


def settings(arguments: argparse.Namespace) -> Settings:
    return Settings(
        epochs=arguments.epochs,
        threads=arguments.threads,
        device=arguments.device,
        max_steps=arguments.max_steps,
    )


def amount(arguments: argparse.Namespace) -> dict[str, Any]:
    """How much of it is measured, and on what."""
    return {key: getattr(arguments, key) for key in ("rounds", "threads", "device", "quick")}


def write(
    arguments: argparse.Namespace,
    content: dict[str, Any],
    draw: Callable[[], Figure] | None = None,
) -> None:
    if arguments.output is not None:
        figure = None if draw is None else draw()
        results.write(arguments.output, {"settings": described(arguments)} | content, figure)


if __name__ == "__main__":
    run_command(main)
