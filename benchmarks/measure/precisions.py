"""Samples per second in every precision, of a small and a wide MLP, against products alone."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.measure.pictures import errors
from benchmarks.measure.results import range_text, show
from benchmarks.measure.rounds import collect, spread
from benchmarks.measure.timed_runs import time_mlp_step
from configs.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRECISIONS = {
    "fp32": ("--precision.dtype=fp32", "--precision.matmul=highest"),
    "tf32": ("--precision.dtype=fp32", "--precision.matmul=high"),
    "bf16": ("--precision.dtype=bf16",),
    "fp16": ("--precision.dtype=fp16",),
}
MODES = {
    "auto": (),
    "autograd": ("--compile.enabled=false", "--compile.backward=autograd"),
    "compiled": ("--compile.enabled=true", "--compile.backward=autograd"),
    "written out": ("--compile.backward=explicit",),
}
"""How the gradient is computed; `auto` is what comes without further options."""
INPUTS, CLASSES = 784, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """An MLP on MNIST, and how much of it is trained."""

    name: str
    hidden: tuple[int, ...]
    batch_size: int
    steps: int

    @property
    def step_flops(self) -> int:
        """Operations of the matrix products of a step: three a layer, two for the first one."""
        sizes = (INPUTS, *self.hidden, CLASSES)
        products = [a * b for a, b in itertools.pairwise(sizes)]
        return 2 * self.batch_size * (3 * sum(products) - products[0])


NETWORKS = {
    "cpu": (
        Network(name="small", hidden=(256, 128), batch_size=64, steps=800),
        Network(name="wide", hidden=(2048, 2048), batch_size=512, steps=60),
    ),
    "cuda": (
        Network(name="small", hidden=(256, 128), batch_size=64, steps=4000),
        Network(name="wide", hidden=(8192, 8192), batch_size=8192, steps=80),
    ),
}
ON_CPU = [("fp32", "auto"), ("bf16", "auto")]
WRITTEN_OUT = [(precision, "written out") for precision in PRECISIONS]
KINDS = {
    # CPUs have hardly a kernel for products in fp16: the wide network would take minutes.
    "cpu": {"small": [*ON_CPU, ("fp16", "auto")], "wide": ON_CPU},
    # A small network is trained in less time than a compiler takes.
    "cuda": {
        "small": WRITTEN_OUT,
        "wide": [*WRITTEN_OUT, ("bf16", "compiled"), ("fp16", "compiled")],
    },
}


@dataclass(frozen=True, slots=True)
class Case:
    network: Network
    precision: str
    mode: str


def all_cases(device: str) -> list[Case]:
    """What is measured on a device."""
    return [
        Case(network, precision, mode)
        for network in NETWORKS[device]
        for precision, mode in KINDS[device][network.name]
    ]


def measure_precisions(
    cases: Sequence[Case],
    *,
    rounds: int,
    threads: int,
    device: str,
    quick: bool,
    seconds: float | None = None,
    seen: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Every case and, in the same rounds, the rate of large square products in its precision.

    When `seconds` have passed nothing more is begun, and cases that had no turn are left out.
    `seen` is given what there is after every measurement.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device", given=device, expected="a CUDA device on this machine")
    torch.set_num_threads(threads)
    products = list(dict.fromkeys(case.precision for case in cases))

    def measure(item: Case | str) -> float:
        if isinstance(item, str):
            return product_rate(item, device)
        print(f"{item.network.name}, {item.precision}, {item.mode}", file=sys.stderr, flush=True)
        steps = item.network.steps // (10 if quick else 1)
        return 1 / time_mlp_step(
            item.network.hidden,
            item.network.batch_size,
            *PRECISIONS[item.precision],
            *MODES[item.mode],
            steps=steps,
            device=device,
            threads=threads,
        )

    items: list[Case | str] = [*products, *cases]
    say = functools.partial(print, file=sys.stderr)

    def results(found: list[list[Any]]) -> dict[str, Any]:
        rates = dict(zip(products, found[: len(products)], strict=True))
        return {
            "products": [
                {"precision": name, "tflops": spread([value * 1e-12 for value in values], 3)}
                for name, values in rates.items()
                if values
            ],
            "cases": [
                summarise(case, values, rates[case.precision][: len(values)])
                for case, values in zip(cases, found[len(products) :], strict=True)
                if values
            ],
        }

    return results(
        collect(items, rounds, measure, say, seconds, lambda found: seen(results(found)))
    )


def product_rate(precision: str, device: str) -> float:
    """Operations per second of a large square matrix product."""
    import torch

    from trainer.profiling.flops import matmul_rate

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        return matmul_rate(torch.device(device), dtype)
    finally:
        torch.set_float32_matmul_precision(before)


def summarise(case: Case, steps: Sequence[float], products: Sequence[float]) -> dict[str, Any]:
    """Rates, and which part of the products' rate a step reaches, round by round."""
    flops = case.network.step_flops
    return {
        **asdict(case),
        "samples_per_second": spread([case.network.batch_size * value for value in steps], 0),
        "tflops": spread([flops * value * 1e-12 for value in steps], 3),
        "part_of_products": spread(
            [flops * value / product for value, product in zip(steps, products, strict=True)]
        ),
    }


def show_precisions(found: dict[str, Any]) -> None:
    """One row for each case, and the products below."""
    rows = [
        (
            f"{item['network']['name']}, batch {item['network']['batch_size']:,}",
            item["precision"],
            item["mode"],
            range_text(item["samples_per_second"], 0),
            range_text(item["tflops"], 3),
            range_text(item["part_of_products"]),
        )
        for item in found["cases"]
    ]
    rows += [
        ("square products", item["precision"], "", "", range_text(item["tflops"], 3), "1.00")
        for item in found["products"]
    ]
    headings = ("network", "precision", "passes", "samples/s", "TFLOP/s", "part of the products'")
    show("Precision (median and range over the rounds)", headings, rows)


def precisions_figure(found: dict[str, Any]) -> Figure:
    """Samples per second of each network, one bar for each precision."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(item["network"]["name"] for item in found["cases"]))
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        cases = [item for item in found["cases"] if item["network"]["name"] == name]
        rates = [item["samples_per_second"] for item in cases]
        medians = [rate["median"] for rate in rates]
        bars = axes.barh(
            [f"{item['precision']}, {item['mode']}" for item in cases],
            medians,
            xerr=errors(rates),
        )
        parts = [f"{item['part_of_products']['median']:.0%}" for item in cases]
        axes.bar_label(bars, parts, padding=4)
        axes.set_xlim(0, max(rate["max"] for rate in rates) * 1.15)
        axes.invert_yaxis()
        network = cases[0]["network"]
        axes.set_title(f"{name}: {network['hidden']}, batch {network['batch_size']:,}", fontsize=10)
        axes.set_xlabel("samples/s (beside: part of the rate of square products)")
    return figure
