"""Samples per second of data sets in memory, mapped and decoded, against workers and pinning."""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure.results import range_text, show
from benchmarks.measure.rounds import collect, ratios, spread
from configs.errors import InputError

if TYPE_CHECKING:
    import torch

    from data.datasets import Datasets

SOURCES = ("in memory", "npy, mapped", "JPEG folder")
WORKERS = (0, 1, 2)
SIDE, PICTURE_SIDE, CROP = 64, 256, 224
"""Height and width in pixels: of arrays, of JPEG files, and of what is decoded from them."""
PREFETCH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """How much is made and read."""

    arrays: int = 20_000
    pictures: int = 2_000
    batch_size: int = 64
    array_batches: int = 400
    picture_batches: int = 30


QUICK = Amounts(arrays=256, pictures=48, batch_size=16, array_batches=8, picture_batches=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way to read one data set."""

    source: str
    workers: int
    pinned: bool | None
    """Whether batches are copied from pinned memory; None without a GPU."""


def measure_loaders(*, rounds: int, threads: int, device: str, quick: bool) -> dict[str, Any]:
    """Make the files, read them in interleaved rounds, and compare with no workers.

    Nothing is computed with the batches: the rate is what the loader could feed, on the device.
    Files were written just before, so the system holds them in memory: a slow disk would be slower.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device", given=device, expected="a CUDA device on this machine")
    torch.set_num_threads(threads)
    place = torch.device(device)
    amounts = QUICK if quick else Amounts()
    pins = (True, False) if device == "cuda" else (None,)
    cases = [
        Case(source=source, workers=workers, pinned=pinned)
        for source in SOURCES
        for workers in WORKERS
        for pinned in pins
    ]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        data = make_data(Path(folder), amounts)

        def measure(case: Case) -> float:
            return samples_per_second(case, data[case.source], amounts, place)

        rates = collect(cases, rounds, measure, lambda line: print(line, file=sys.stderr))
    return {"amounts": asdict(amounts), "cases": summarise(cases, rates)}


def make_data(folder: Path, amounts: Amounts) -> dict[str, Datasets]:
    """The same random arrays in memory and mapped, and random pictures as JPEG files."""
    import numpy as np
    import torch

    from configs.imports import import_extra
    from configs.schema import DataConfig
    from data.datasets import ArrayDataset, Datasets, load_datasets

    random = np.random.default_rng(0)
    inputs = random.integers(0, 256, (amounts.arrays, 3, SIDE, SIDE), dtype=np.uint8)
    targets = random.integers(0, 10, amounts.arrays)
    targets[:10] = np.arange(10)
    for split, count in (("train", amounts.arrays), ("test", 10)):
        np.save(folder / f"{split}_inputs.npy", inputs[:count])
        np.save(folder / f"{split}_targets.npy", targets[:count])
    arrays = ArrayDataset(torch.from_numpy(inputs), torch.from_numpy(targets))
    pillow = import_extra("PIL.Image", "images")
    for split, count in (("train", amounts.pictures), ("val", 2)):
        for number in range(count):
            # Noise does not compress: enlarged, it becomes a picture of usual size on disk.
            noise = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            picture = pillow.fromarray(noise).resize((PICTURE_SIDE, PICTURE_SIDE))
            path = folder / split / f"class_{number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, quality=90)
    root, size = str(folder), {"size": CROP}
    return {
        "in memory": Datasets(
            train=arrays, test=arrays, input_shape=tuple(inputs.shape[1:]), num_classes=10
        ),
        "npy, mapped": load_datasets(DataConfig(dataset="npy", root=root), seed=0),
        "JPEG folder": load_datasets(
            DataConfig(dataset="image_folder", root=root, kwargs=size), seed=0
        ),
    }


def samples_per_second(case: Case, data: Datasets, amounts: Amounts, device: torch.device) -> float:
    """Rate of a fresh loader after its workers have started and their queues are full."""
    from data.loading.host_loader import HostLoader
    from data.loading.order import Plan
    from trainer.ranks.link import wait_for

    loader = HostLoader(
        data.train,
        data.held_out,
        plan=Plan(
            num_samples=len(data.train), global_batch_size=amounts.batch_size, drop_last=True
        ),
        device=device,
        workers=case.workers,
        prefetch_factor=PREFETCH,
        pinned=bool(case.pinned),
    )
    batches = loader.stream(0)
    count = amounts.picture_batches if case.source == "JPEG folder" else amounts.array_batches
    # What the queues held at the start is not the loader's pace: read past it first.
    for _ in range(2 * PREFETCH * case.workers + 2):
        next(batches)
    wait_for(device)
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    wait_for(device)
    seconds = time.perf_counter() - start
    del batches, loader  # ends the workers
    gc.collect()
    return count * amounts.batch_size / seconds


def summarise(cases: list[Case], rates: list[list[float]]) -> list[dict[str, Any]]:
    """Spread of each case, and its ratio to the same one without workers, round by round."""
    found = dict(zip(cases, rates, strict=True))
    return [
        asdict(case)
        | {
            "samples_per_second": spread(values, 0),
            "against_no_workers": ratios(
                values, found[Case(source=case.source, workers=0, pinned=case.pinned)]
            ),
        }
        for case, values in found.items()
    ]


def show_loaders(found: dict[str, Any]) -> None:
    """One row for each case."""
    rows = [
        (
            item["source"],
            str(item["workers"]),
            {None: "", True: "pinned", False: "pageable"}[item["pinned"]],
            range_text(item["samples_per_second"], 0),
            range_text(item["against_no_workers"]),
        )
        for item in found["cases"]
    ]
    show(
        "Loaders",
        ("data", "workers", "memory", "samples/s (median, range)", "against no workers"),
        rows,
    )
