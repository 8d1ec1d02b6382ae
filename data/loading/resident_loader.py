"""Batches gathered from arrays that live on the device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from data.loading.order import GlobalBatch, Plan, evaluation_batches
from data.samples import ArrayDataset, Batch, MapDataset


class ResidentLoader:
    """Data that lives where it is used: two gathers per micro-batch, no copies and no processes.

    Args:
        train: Training set, copied to the device.
        held_out: Arrays that are evaluated on, by name, copied too.
        plan: Which samples this rank trains on, and in which order.
        device: Where the data lives.
    """

    def __init__(
        self,
        train: ArrayDataset,
        held_out: Mapping[str, MapDataset],
        *,
        plan: Plan,
        device: torch.device,
    ) -> None:
        self.train = train.to(device)
        self.held_out = {name: as_array(data).to(device) for name, data in held_out.items()}
        self.plan = plan
        self.device = device
        self.epoch, self.order = -1, torch.empty(0)
        self.next_epoch, self.next_order = -1, torch.empty(0)

    def stream(self, global_batch: int) -> Iterator[Batch]:
        """This rank's micro-batches from global batch `global_batch` on, endlessly."""
        while True:
            current = self.plan.global_batch(global_batch)
            order = self._order(current.epoch)
            for micro in current.micro_batches:
                start = current.start + micro.start
                yield Batch(*self.train.gather(order.narrow(0, start, micro.size)), micro.size)
            global_batch += 1

    def block(self, global_batches: Sequence[GlobalBatch], out: Batch | None = None) -> Batch:
        """This rank's samples of some global batches of one epoch, one after the other.

        Args:
            global_batches: Global batches of the same epoch.
            out: A block of as many samples to write to; None allocates one.
        """
        into = None if out is None else (out.inputs, out.targets)
        order = self._order(global_batches[0].epoch)
        spans = [
            (batch.start + batch.micro_batches[0].start, batch.start + batch.micro_batches[-1].stop)
            for batch in global_batches
        ]
        if all(before[1] == after[0] for before, after in itertools.pairwise(spans)):
            indices = order[spans[0][0] : spans[-1][1]]
        else:
            indices = torch.cat([order[slice(*span)] for span in spans])
        return Batch(*self.train.gather(indices, into), len(indices))

    def look_ahead(self, epoch: int) -> None:
        """Copy the order of an epoch to the device before a step has to wait for it."""
        if epoch != self.next_epoch:
            order = self.plan.order(epoch)
            if self.device.type == "cuda":
                order = order.pin_memory()
            self.next_epoch, self.next_order = epoch, order.to(self.device, non_blocking=True)

    def _order(self, epoch: int) -> Tensor:
        if epoch != self.epoch:
            self.look_ahead(epoch)
            self.epoch, self.order = epoch, self.next_order
        return self.order

    def evaluation(
        self, name: str, batch_size: int, rank: int, world_size: int
    ) -> Iterator[tuple[int, Batch]]:
        """This rank's batches of a set that is held out, each with its index among all of them."""
        data = self.held_out[name]
        bounds = evaluation_batches(len(data), batch_size)
        for index in range(rank, len(bounds), world_size):
            start, stop = bounds[index]
            yield index, Batch(*data.rows(start, stop), stop - start)


def as_array(data: MapDataset) -> ArrayDataset:
    """A data set that `placement` found to be an array."""
    assert isinstance(data, ArrayDataset)
    return data
