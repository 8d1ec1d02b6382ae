"""An order of samples of the user's own: `data.order`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from configs.errors import InputError
from configs.imports import call_with, import_object
from configs.schema import DataConfig
from data.samples import MapDataset

PROTOCOL = (
    "a function of (seed, epoch), and of data, the training set, if it asks for that, that gives "
    "the indices of the samples of an epoch in their order: whole numbers, as many in every epoch, "
    "and the same whenever it is asked"
)


class UserOrder:
    """Calls the user's function once for each epoch, and checks what it gives.

    Weighted or balanced sampling, batches of like lengths, a curriculum: a pure function of the
    seed and the epoch keeps every promise of a run, since it has no state to lose.
    """

    def __init__(self, path: str, data: MapDataset, seed: int) -> None:
        self.path = path
        self.data = data
        self.seed = seed
        self.function = import_object("data.order", path)
        if not callable(self.function):
            raise self._refusal(type(self.function).__name__)
        self.known = {0: self._ask(0)}
        self.size = len(self.known[0])
        if not torch.equal(self._ask(0), self.known[0]):
            raise self._refusal("another order when asked again", "Seed its generator with seed.")

    def __call__(self, epoch: int) -> Tensor:
        if epoch not in self.known:
            found = self._ask(epoch)
            if len(found) != self.size:
                raise self._refusal(
                    f"{len(found)} samples in epoch {epoch}, {self.size} in the first"
                )
            self.known = {**dict(list(self.known.items())[-1:]), epoch: found}
        return self.known[epoch]

    def _ask(self, epoch: int) -> Tensor:
        offered = {"seed": self.seed, "epoch": epoch, "data": self.data}
        found: Any = call_with("data.order", self.function, {}, offered)
        try:
            order = torch.as_tensor(found)
        except (TypeError, ValueError, RuntimeError):
            raise self._refusal(type(found).__name__) from None
        if order.ndim != 1 or order.is_floating_point() or not len(order):
            raise self._refusal(f"{order.dtype} of shape {tuple(order.shape)}")
        low, high = int(order.min()), int(order.max())
        if low < 0 or high >= len(self.data):
            raise self._refusal(f"indices from {low} to {high} of {len(self.data)} samples")
        return order.to(torch.int64)

    def _refusal(self, given: str, remedy: str = "") -> InputError:
        return InputError(f"data.order {self.path}", given=given, expected=PROTOCOL, remedy=remedy)


def choose_order(config: DataConfig, data: MapDataset, seed: int) -> UserOrder | None:
    """What `data.order` names; None: a permutation for each epoch.

    Raises:
        InputError: If that is no such function.
    """
    return None if config.order is None else UserOrder(config.order, data, seed)
