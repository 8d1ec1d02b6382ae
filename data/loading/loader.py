"""Where the data lives, on the device or in host memory, and the loader that follows from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch

from configs.errors import InputError
from configs.schema import DataConfig
from data.collate import choose_collate
from data.loading.host_loader import HostLoader
from data.loading.order import Plan
from data.loading.resident_loader import ResidentLoader, as_array
from data.samples import ArrayDataset, Batch, MapDataset

RESIDENT_FRACTION = 0.25
"""Part of the free device memory that `data.placement: auto` gives to the data."""


class Loader(Protocol):
    """Batches on the device, in the order of a plan."""

    def stream(self, global_batch: int) -> Iterator[Batch]:
        """This rank's micro-batches from global batch `global_batch` on, epoch after epoch,
        endlessly."""
        ...

    def evaluation(
        self, name: str, batch_size: int, rank: int, world_size: int
    ) -> Iterator[tuple[int, Batch]]:
        """This rank's batches of a set that is held out, each with its index among all of them."""
        ...


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a GPU; None on a CPU, where device and host are one."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def placement(config: DataConfig, sets: Sequence[MapDataset], free: int | None) -> tuple[bool, str]:
    """Decide whether the data live on the device (`data.placement`).

    Args:
        config: What the user asked for.
        sets: Training set and sets that are held out.
        free: Bytes of the device's memory; see `free_bytes`.

    Returns:
        Whether the data live on the device, and the reason in a few words.

    Raises:
        InputError: If data that are not arrays in memory are to live on the device.
    """
    arrays = [data for data in sets if isinstance(data, ArrayDataset)]
    if len(arrays) < len(sets):
        _refuse_device(config, "data.datasets.ArrayDataset")
        return False, "the data set is not held in memory as arrays"
    if config.collate is not None:
        _refuse_device(config, "data.collate null")
        return False, f"data.collate is {config.collate}"
    if config.placement != "auto":
        return config.placement == "device", f"data.placement is {config.placement}"
    if config.workers:
        return False, f"data.workers is {config.workers}"
    if free is None:
        return True, "the arrays are in this memory already"
    needed = sum(data.num_bytes for data in arrays)
    fits = needed <= RESIDENT_FRACTION * free
    return fits, (
        f"{needed / 1e6:,.0f} MB are {'at most' if fits else 'more than'} "
        f"{RESIDENT_FRACTION:.0%} of the free device memory"
    )


def _refuse_device(config: DataConfig, needed: str) -> None:
    if config.placement == "device":
        raise InputError(
            "data.placement",
            given="device",
            expected="auto or host for a data set that is read sample by sample",
            remedy=f"Only with {needed} can the data live on the device.",
        )


def build_loader(
    config: DataConfig,
    train: MapDataset,
    held_out: Mapping[str, MapDataset],
    *,
    plan: Plan,
    device: torch.device,
    on_device: bool | None = None,
) -> Loader:
    """The loader of a run.

    Args:
        config: Workers, how far they read ahead, and the placement.
        train: Training set.
        held_out: What is evaluated on, by name.
        plan: Which samples this rank trains on, and in which order.
        device: Where batches are needed.
        on_device: Whether the data live there, as `placement` decides; None lets it decide now.

    Raises:
        InputError: If data that are not arrays in memory are to live on the device, or workers
            could not answer.
    """
    if on_device is None:
        on_device, _ = placement(config, [train, *held_out.values()], free_bytes(device))
    if on_device:
        return ResidentLoader(as_array(train), held_out, plan=plan, device=device)
    return HostLoader(
        train,
        held_out,
        plan=plan,
        device=device,
        workers=config.workers,
        prefetch_factor=config.prefetch_factor,
        collate=choose_collate(config),
    )
