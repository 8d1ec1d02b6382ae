"""The options of a benchmark: which measurement, how much of it, and where the result goes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import results
from benchmarks.measure.option_costs import WARMUP_STEPS
from benchmarks.measure.scaling_bench import add_scaling_arguments
from configs.errors import InputError

RESULTS = Path(__file__).resolve().parents[1] / "results"
WITH_PICTURE = ("peers", "growth", "roofline", "precisions", "seeds")
DEFAULT_ROUNDS, DEFAULT_EPOCHS, DEFAULT_STEPS = 5, 3, 700


def build_parser(description: str) -> argparse.ArgumentParser:
    """The options of `launch/benchmark.py`."""
    parser = argparse.ArgumentParser(
        prog="launch/benchmark.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--text", action="store_true", help="the language model and its peers")
    add("--options", action="store_true", help="options of Convoy")
    add("--finite", action="store_true", help="the search for numbers that are not finite")
    add("--growth", action="store_true", help="batch size, width and ranks")
    add("--roofline", action="store_true", help="steps against their floors")
    add("--precision", dest="precisions", action="store_true", help="every precision")
    add("--compile", dest="compile_starts", action="store_true", help="starts that compile")
    add("--loader", dest="loaders", action="store_true", help="loaders, workers, pinned memory")
    add("--sharded-memory", action="store_true", help="memory of a rank that holds a part")
    add("--seeds", type=int, metavar="N", help="a recipe with N seeds")
    add("--config", default="mnist_fast", help="recipes of --seeds (default: mnist_fast)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="for the runs of --seeds")
    add("--quick", action="store_true", help="one short round; writes only to --output")
    add("--only", metavar="NAME,...", help="these contenders; writes only to --output")
    add("--rounds", type=int, help=f"runs of each (default: {DEFAULT_ROUNDS})")
    add("--epochs", type=int, help=f"epochs of a run (default: {DEFAULT_EPOCHS})")
    add("--steps", type=int, help=f"steps of a run with --options (default: {DEFAULT_STEPS})")
    add("--max-steps", type=int, help="end every run of a peer or mode after this many steps")
    add(
        "--seconds", type=float, help="begin nothing more after so long (peers, compile, precision)"
    )
    add("--threads", type=int, help="CPU threads of a contender, over its ranks (default: all)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where everyone trains")
    add("--output", type=Path, help="JSON file (default: benchmarks/results/WHAT.json)")
    add_scaling_arguments(parser)
    return parser


def parse_options(
    argv: Sequence[str], description: str, kinds: Iterable[str]
) -> argparse.Namespace:
    """Arguments with their defaults filled in, and which kind of measurement they ask for.

    Raises:
        InputError: For numbers below 1, and an output that cannot be written.
    """
    arguments = build_parser(description).parse_args(argv)
    chosen = [name for name in kinds if getattr(arguments, name, None) not in (None, False)]
    if len(chosen) > 1:
        raise InputError("what to measure", given=chosen, expected="one of them at a time")
    arguments.kind = chosen[0] if chosen else "peers"
    _fill_defaults(arguments)
    if arguments.only is not None and arguments.kind not in ("peers", "text"):
        raise InputError("--only", given=arguments.only, expected="a comparison of peers")
    if arguments.kind == "project_scaling":
        return arguments  # it has an output of its own
    if arguments.output is None and not (arguments.quick or arguments.only):
        name = Path(arguments.config).stem.replace(",", "+")
        name = name if arguments.kind == "seeds" else arguments.kind
        name += "_gpu" if arguments.device == "cuda" else ""
        arguments.output = RESULTS / f"{name}.json"
    results.check_output(arguments.output, picture=arguments.kind in WITH_PICTURE)
    return arguments


def _fill_defaults(arguments: argparse.Namespace) -> None:
    """Numbers that were not given, and a check of all of them."""
    quick = arguments.quick
    defaults = {
        "rounds": 1 if quick else DEFAULT_ROUNDS,
        "epochs": 1 if quick else DEFAULT_EPOCHS,
        "steps": WARMUP_STEPS * 3 if quick else DEFAULT_STEPS,
        "threads": len(os.sched_getaffinity(0)),
    }
    for key, default in defaults.items():
        if getattr(arguments, key) is None:
            setattr(arguments, key, default)
    for key in ("rounds", "epochs", "steps", "threads", "max_steps", "seeds", "seconds"):
        value = getattr(arguments, key)
        if value is not None and value < 1:
            raise InputError(f"--{key.replace('_', '-')}", given=value, expected="1 or more")


def described(arguments: argparse.Namespace) -> dict[str, Any]:
    """How it was measured, for the JSON file and the picture."""
    own = {
        "options": ("steps",),
        "peers": ("epochs", "device"),
        "text": ("epochs", "device"),
        "roofline": ("epochs", "device"),
    }
    keys = ("rounds", "threads", *own.get(arguments.kind, ("device",)))
    found = {key: getattr(arguments, key) for key in keys}
    if arguments.max_steps is not None:
        found["max_steps"] = arguments.max_steps
    return found
