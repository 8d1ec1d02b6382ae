"""What a step cannot be faster than: its matrix products, fused Adam, all-reduce, and the memory.

    python benchmarks/floors.py --threads 2
    torchrun --nproc_per_node=2 benchmarks/floors.py --threads 2

Each is timed alone, as the median of many short series of calls. Under torchrun every rank works on
its share of the batch at the same time, and the all-reduce of the gradient is measured too. Prints
one JSON line: times in microseconds, rates per second, and the work behind them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import torch.distributed as dist
from torch import Tensor

from configs.schema_execution import ParallelConfig
from trainer.ranks.neighbour import meet_neighbour
from trainer.ranks.runtime import choose_device, detect

SIZES = (784, 256, 128, 10)
BATCH = 64
SQUARE = 1024
COPY_BYTES = 1 << 26
SERIES, CALLS, WARMUP = 25, 20, 20

Product = tuple[Tensor, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--series", type=int, default=SERIES, help="series of 20 calls of each")
    arguments = parser.parse_args()
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(max(arguments.threads // ranks, 1))
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    if ranks > 1:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    clock = Clock(device, arguments.series)
    found = measure(clock, BATCH // ranks, device)
    found |= {"ranks": ranks, "threads": arguments.threads, "batch": BATCH}
    if ranks > 1:
        gradient = torch.zeros(num_parameters(), device=device)
        runtime = choose_device(detect(os.environ), ParallelConfig(device=arguments.device))
        neighbour = meet_neighbour(runtime, gradient.numel())
        reduce = dist.all_reduce if neighbour is None else neighbour.sum_
        found["all_reduce_microseconds"] = clock.microseconds(lambda: reduce(gradient))
        found["all_reduce_bytes"] = gradient.nbytes
        dist.barrier()
        dist.destroy_process_group()
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(found), flush=True)
    if ranks > 1:
        os._exit(0)  # threads of gloo now and then abort an interpreter that is torn down


class Clock:
    """Median time of a call over series of calls, after a warm-up."""

    def __init__(self, device: torch.device, series: int) -> None:
        self.synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self.series = series

    def microseconds(self, call: Callable[[], Any], calls: int = CALLS) -> float:
        for _ in range(WARMUP if calls > 1 else 2):
            call()
        times = []
        for _ in range(self.series):
            self.synchronize()
            began = time.perf_counter()
            for _ in range(calls):
                call()
            self.synchronize()
            times.append((time.perf_counter() - began) / calls * 1e6)
        return statistics.median(times)


def measure(clock: Clock, batch: int, device: torch.device) -> dict[str, Any]:
    """The floors of one process."""
    found: dict[str, Any] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        chosen = [fastest(clock, layouts) for layouts in products(batch, dtype, device)]
        found[f"products_{name}_microseconds"] = clock.microseconds(lambda c=chosen: multiply(c))
        found[f"products_{name}_bytes"] = sum(
            tensor.nbytes for left, right in chosen for tensor in (left, right, left @ right)
        )
        square = torch.randn(SQUARE, SQUARE, device=device).to(dtype)
        micros = clock.microseconds(lambda s=square: s @ s, calls=1)
        found[f"peak_{name}_flops_per_second"] = 2 * SQUARE**3 / micros * 1e6
    found["products_flops"] = sum(
        2 * left.shape[0] * left.shape[1] * right.shape[1] for left, right in chosen
    )
    parameter = torch.nn.Parameter(torch.randn(num_parameters(), device=device))
    parameter.grad = torch.randn_like(parameter)
    adam = torch.optim.Adam([parameter], fused=True)
    found["adam_microseconds"] = clock.microseconds(adam.step)
    found["adam_bytes"] = (
        7 * parameter.nbytes
    )  # weight, gradient, moments read; all but one written
    found["adam_flops"] = 12 * parameter.numel()
    source = torch.zeros(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    micros = clock.microseconds(lambda: target.copy_(source), calls=1)
    found["bandwidth_bytes_per_second"] = 2 * COPY_BYTES / micros * 1e6
    return found


def products(batch: int, dtype: torch.dtype, device: torch.device) -> Iterator[list[Product]]:
    """The eight matrix products of a step, each in the layouts it can be had in."""

    def random(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, device=device).to(dtype)

    for layer, (inputs, outputs) in enumerate(pairwise(SIZES)):
        values, gradient = random(batch, inputs), random(batch, outputs)
        weight, transposed = random(outputs, inputs), random(inputs, outputs)
        yield [(values, weight.t()), (values, transposed)]
        yield [(gradient.t(), values), (values.t(), gradient)]
        if layer > 0:  # nobody asks for the gradient of the images
            yield [(gradient, weight), (gradient, transposed.t())]


def fastest(clock: Clock, layouts: list[Product]) -> Product:
    return min(layouts, key=lambda layout: clock.microseconds(lambda: layout[0] @ layout[1]))


def multiply(chosen: list[Product]) -> None:
    for left, right in chosen:
        torch.mm(left, right)


def num_parameters() -> int:
    """Weights and biases of the network."""
    return sum((inputs + 1) * outputs for inputs, outputs in pairwise(SIZES))


if __name__ == "__main__":
    main()
