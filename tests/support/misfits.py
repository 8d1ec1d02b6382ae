"""Models, losses and functions of the user's that do not fit the batches they are given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Words(torch.utils.data.Dataset[Any]):
    """Ids of several lengths, in two classes; with names if `named`."""

    num_classes = 2

    def __init__(self, count: int, named: bool) -> None:
        self.count, self.named = count, named

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        ids = torch.arange(1, 3 + index % 4)
        return {"ids": ids, "labels": index % 2} if self.named else (ids, index % 2)


def words(named: bool = False) -> tuple[Words, Words]:
    return Words(40, named), Words(12, named)


class OneInput(nn.Module):
    """Takes ids `(B, L)` and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids).mean(1))


class Other(OneInput):
    """Has another name for the ids."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens)


class Masked(OneInput):
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        weight = mask[..., None].float()
        return self.head((self.embedding(ids) * weight).sum(1) / weight.sum(1))


class Three(OneInput):
    def forward(self, ids: Tensor, mask: Tensor, more: Tensor) -> Tensor:
        return super().forward(ids)


class Deep(OneInput):
    """A mistake of its own, in a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Three()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.part(ids)


def wrongly(model: nn.Module, batch: Any) -> Any:
    """Calls a model with more than it takes."""
    (ids, mask), _ = batch
    return model(ids, mask, mask)


def by_name(model: nn.Module, batch: Any) -> Any:
    return model(batch["ids"], batch["attention_mask"].bool())


def of_one(batch: Any) -> Any:
    return batch


def loss_of_outputs(outputs: Tensor) -> Tensor:
    return outputs.square().mean()


def loss_inside(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs["logits"].square()  # type: ignore[call-overload, no-any-return]


class WrongMetric:
    width = 1
    higher_is_better = True

    def sums(self, outputs: Tensor) -> Tensor:
        return outputs.sum().reshape(1)

    def compute(self, sums: list[float], count: int) -> dict[str, float]:
        return {"wrong": sums[0]}


class NarrowMetric(WrongMetric):
    """Keeps two sums and says one."""

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        return torch.stack([outputs.sum(), targets.sum()])
