"""What the peer programs share: arguments, MNIST, the clock, and the JSON line at the end."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.catalogue.catalog import MNIST
from data.formats.idx import read_idx

SIZES = (784, 256, 128, 10)
DROPOUT = 0.2
BATCH = 64
LEARNING_RATE = 1e-3
IMPORTED_AT = time.time()


@dataclass(frozen=True, slots=True)
class Images:
    """`pixels` uint8 (N, 784) and `labels` int64 (N,)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def normalised(self) -> NDArray[np.float32]:
        """`(pixels / 255 - mean) / std` in float32, (N, 784)."""
        offset, factor = (
            np.float32(MNIST.mean[0] / MNIST.std[0]),
            np.float32(1 / (255 * MNIST.std[0])),
        )
        return self.pixels.astype(np.float32) * factor - offset


def load_mnist(limit: int | None = None) -> tuple[Images, Images]:
    """The training images (the first `limit` of them) and the 10,000 test images."""
    folder = MNIST.embedded
    assert folder is not None
    found = []
    for split in ("train", "test"):
        pixels, labels = (
            read_idx(folder / f"{MNIST.files[f'{split}_{kind}'].name}.gz")
            for kind in ("images", "labels")
        )
        most = limit if split == "train" else None
        found.append(Images(pixels.reshape(len(pixels), -1)[:most], labels[:most].astype(np.int64)))
    return found[0], found[1]


def parse(description: str, *, max_steps: int | None = None, ranks: int = 1) -> argparse.Namespace:
    """The arguments every peer takes; `--threads` are shared by all ranks of a program."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--epochs", type=int, default=1, help="passes over the training images (default: 1)")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads, all ranks")
    add("--device", default="cpu", choices=("cpu", "cuda"), help="where to train")
    add(
        "--matmul",
        default="highest",
        choices=("highest", "high"),
        help="fp32 matrix products on a GPU; high: in tf32",
    )
    add("--limit", type=int, help="train on the first LIMIT images only")
    add("--max-steps", type=int, default=max_steps, help="stop after this many steps")
    add("--seed", type=int, default=0, help="of weights, order and dropout")
    add("--ranks", type=int, default=ranks, help=f"processes (default: {ranks})")
    add("--started", type=float, default=IMPORTED_AT, help="unix time of the command's start")
    arguments = parser.parse_args()
    arguments.threads_per_rank = max(arguments.threads // arguments.ranks, 1)
    return arguments


def start_under_torchrun(arguments: argparse.Namespace) -> None:
    """Become `torchrun THIS PROGRAM` unless a launcher has started it already."""
    if "RANK" not in os.environ:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        torchrun += [f"--nproc_per_node={arguments.ranks}", f"--log-dir={os.devnull}"]
        os.execv(sys.executable, [*torchrun, *sys.argv, f"--started={arguments.started}"])


class Report:
    """Times every epoch, counts steps, and prints one JSON line; evaluation is not timed."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.name = name
        self.arguments = arguments
        self.train_seconds: list[float] = []
        self.compile_seconds = 0.0
        self.first_step_seconds: float | None = None
        self.steps = 0
        self.samples = 0
        self.loss = self.accuracy = float("nan")
        self.mark = 0.0

    @property
    def done(self) -> bool:
        """Whether `--max-steps` is reached."""
        return self.steps >= (self.arguments.max_steps or sys.maxsize)

    def epochs(self) -> Iterator[int]:
        """Epoch numbers; the clock starts when one is handed out."""
        for epoch in range(self.arguments.epochs):
            if self.done:
                return
            self.begin_epoch()
            yield epoch

    def begin_epoch(self) -> None:
        self.mark = time.perf_counter()

    def stepped(self, count: int = 1) -> bool:
        """Count optimizer steps; True when they are enough."""
        if self.first_step_seconds is None:
            self.first_step_seconds = time.time() - self.arguments.started
        self.steps += count
        return self.done

    def end_epoch(self, loss: float, accuracy: float, samples: int) -> None:
        """Stop the clock; mean loss and accuracy are floats, so the device has finished."""
        self.train_seconds.append(time.perf_counter() - self.mark)
        self.loss, self.accuracy = float(loss), float(accuracy)
        self.samples = max(self.samples, samples)

    def finish(self, test_accuracy: float, **more: Any) -> None:
        """Print the line; `more` replaces or adds keys."""
        usage = [
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        line = {
            "name": self.name,
            "train_seconds": self.train_seconds,
            "compile_seconds": self.compile_seconds,
            "first_step_seconds": self.first_step_seconds,
            "test_accuracy": test_accuracy,
            "train_loss": self.loss,
            "train_accuracy": self.accuracy,
            "peak_memory_bytes": max(item.ru_maxrss for item in usage) * 1024,
            "epochs": len(self.train_seconds),
            "steps": self.steps,
            "samples_per_epoch": self.samples,
            "threads": self.arguments.threads,
            "ranks": self.arguments.ranks,
            "extrapolated": False,
        }
        print(json.dumps(line | more), flush=True)
