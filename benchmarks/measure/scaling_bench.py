"""What a step would take on up to 1,024 ranks, from what two ranks and one rank take here."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure.processes import run
from benchmarks.measure.scaling_report import Findings, show_scaling, write_scaling
from benchmarks.measure.timed_runs import NOTHING_BUT_STEPS, time_step
from configs.errors import InputError
from configs.imports import import_extra
from launch.entry import TRAIN, torchrun

if TYPE_CHECKING:
    from benchmarks.measure.scaling_model import Fit, Link

MEASURE_LINK = TRAIN.with_name("measure_link.py")
RESULT = Path(__file__).resolve().parents[1] / "results" / "scaling.json"
MAX_RANKS = 1024
ALGORITHMS = ("ring", "halving_doubling")
NUM_BATCH_SIZES = 3


def add_scaling_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `--project-scaling`."""
    group = parser.add_argument_group("scaling beyond this machine")
    group.add_argument(
        "--project-scaling",
        action="store_true",
        help="predict step time and efficiency up to 1,024 ranks instead of comparing peers",
    )
    group.add_argument("--link-gbps", type=float, help="bandwidth of a link in Gbit/s")
    group.add_argument("--link-latency-us", type=float, help="latency of a link in microseconds")
    group.add_argument("--scaling-ranks", type=int, default=2, help="ranks that measure the link")
    group.add_argument("--scaling-config", default="mnist", help="recipe or YAML file of the run")
    group.add_argument(
        "--scaling-options",
        default="",
        help="more options of the run, such as '--compile.enabled true'",
    )
    group.add_argument("--scaling-steps", type=int, default=400, help="steps that time one rank")
    group.add_argument("--scaling-largest-mb", type=float, default=64, help="largest message, MiB")
    group.add_argument("--scaling-algorithm", choices=ALGORITHMS, default=ALGORITHMS[0])
    group.add_argument(
        "--scaling-output", type=Path, default=RESULT, help="JSON file; a PNG goes beside it"
    )


def project_scaling(arguments: argparse.Namespace) -> int:
    """Measure, predict, print a table, and write JSON and a plot; returns the exit status.

    Raises:
        InputError: For arguments that cannot be, and if matplotlib is not installed.
    """
    _check(arguments)
    found = _find(arguments)
    write_scaling(arguments, found)
    show_scaling(found)
    print(f"Written to {arguments.scaling_output} and its .png")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    import_extra("matplotlib.figure", "benchmark")  # better now than after the measurements
    smallest = {"scaling_ranks": 2, "scaling_steps": 40, "scaling_largest_mb": 0.002}
    for name, least in smallest.items():
        if not getattr(arguments, name) >= least:
            key = "--" + name.replace("_", "-")
            raise InputError(key, given=getattr(arguments, name), expected=f"{least} or more")
    for key, value in (
        ("--link-gbps", arguments.link_gbps),
        ("--link-latency-us", arguments.link_latency_us),
    ):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(key, given=value, expected="a number above 0")


def _find(arguments: argparse.Namespace) -> Findings:
    from benchmarks.measure import scaling_model as scaling
    from configs.load import load_config

    options = [f"--config={arguments.scaling_config}", *shlex.split(arguments.scaling_options)]
    config = load_config(options, prog="launch/train.py", description="")
    batch = config.train.global_batch_size
    sizes = sorted({max(batch // 4**power, 1) for power in range(NUM_BATCH_SIZES)}, reverse=True)
    if len(sizes) < 2:
        raise InputError(
            "train.global_batch_size",
            given=batch,
            expected="2 or more, to tell the cost of a sample from that of a step",
        )
    gradient_bytes = _gradient_bytes(config)
    steps = {size: step_seconds(options, size, arguments.scaling_steps) for size in sizes}
    given = arguments.link_gbps is not None and arguments.link_latency_us is not None
    messages = (
        None if given else measure_link(arguments.scaling_ranks, arguments.scaling_largest_mb)
    )
    fit = None
    if messages is not None:
        times = messages["all_reduce"]
        fit = scaling.fit_link(
            messages["ranks"],
            [item["bytes"] for item in times],
            [item["seconds"] for item in times],
        )
    link = choose_link(arguments.link_gbps, arguments.link_latency_us, fit)
    compute = scaling.fit_compute(list(steps), list(steps.values()))
    ranks = [2**power for power in range(MAX_RANKS.bit_length())]
    predictions = [
        law(
            ranks,
            batch,
            compute=compute,
            link=link,
            num_bytes=gradient_bytes,
            all_reduce=scaling.ALGORITHMS[arguments.scaling_algorithm],
        )
        for law in (scaling.weak_scaling, scaling.strong_scaling)
    ]
    return Findings(
        batch,
        gradient_bytes,
        steps,
        compute,
        messages,
        fit,
        link,
        arguments.scaling_algorithm,
        *predictions,
    )


def choose_link(gbps: float | None, latency_us: float | None, fit: Fit | None) -> Link:
    """The link as given, where it is, and as measured where it is not."""
    from benchmarks.measure.scaling_model import Link

    if gbps is not None and latency_us is not None:
        return Link(latency_us / 1e6, gbps * 1e9 / 8)
    assert fit is not None
    return Link(
        fit.link.latency_seconds if latency_us is None else latency_us / 1e6,
        fit.link.bytes_per_second if gbps is None else gbps * 1e9 / 8,
    )


def step_seconds(options: Sequence[str], batch: int, steps: int) -> float:
    """Seconds of a step of one rank with so many samples, from the records of a real run."""
    every = steps // 4
    return time_step(
        *options,
        f"--train.global_batch_size={batch}",
        "--train.micro_batch_size=null",
        f"--train.epochs={4 * every}",  # an epoch has a step at least
        "--schedule.warmup_steps=0",
        "--parallel.reduction=fast",
        *NOTHING_BUT_STEPS,
        steps=4 * every,
        record_every=every,
        warmup_steps=0,
        threads=len(os.sched_getaffinity(0)),
    )


def measure_link(ranks: int, largest_mb: float) -> dict[str, Any]:
    """Start real ranks and time their all-reduce: NCCL if there is a GPU for each, else gloo."""
    import torch

    device = "cuda" if torch.cuda.device_count() >= ranks else "cpu"
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        output = Path(folder) / "link.json"
        command = [*torchrun(ranks), str(MEASURE_LINK), f"--output={output}"]
        command += [f"--device={device}", f"--largest-mb={largest_mb}"]
        run(command, threads=max((os.cpu_count() or 1) // ranks, 1))
        measured: dict[str, Any] = json.loads(output.read_text())
    return measured


def _gradient_bytes(config: Any) -> int:
    """Bytes of the gradients of all trainable parameters of the run's model."""
    from data.datasets import load_datasets
    from trainer.networks.models import build_model

    data = load_datasets(config.data, seed=config.seed)
    model = build_model(
        config.model,
        input_shape=data.input_shape,
        num_classes=data.num_classes,
        seed=config.seed,
    )
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
