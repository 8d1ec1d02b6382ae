"""Small attention networks as BERT begins: queries and keys get almost no gradient at first."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

WORDS, LENGTH, CLASSES = 20, 12, 2


def ids(num_train: int = 1200) -> tuple[TensorDataset, TensorDataset]:
    """Which half of the words comes more often: int64 `(N, 12)`."""
    generator = torch.Generator().manual_seed(0)
    found = torch.randint(WORDS, (num_train + 300, LENGTH), generator=generator)
    labels = ((found < WORDS // 2).float().mean(1) > 0.5).long()
    train, test = slice(num_train), slice(num_train, None)
    return TensorDataset(found[train], labels[train]), TensorDataset(found[test], labels[test])


def named(num_train: int = 1200) -> tuple[Any, Any]:
    """The same with names."""
    return Named(ids(num_train)[0]), Named(ids(num_train)[1])


def spoilt() -> tuple[Any, Any]:
    """The same with one number that is none."""
    train, test = named()
    train.bad = 700
    return train, test


class Named(torch.utils.data.Dataset[Any]):
    num_classes = CLASSES

    def __init__(self, rows: TensorDataset) -> None:
        self.rows = rows
        self.bad = -1

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        found, label = self.rows[index]
        weight = torch.tensor(float("nan") if index == self.bad else 1.0)
        return {"ids": found, "labels": int(label), "weight": weight}


class Block(nn.Module):
    """Attention and a linear part, each added and normalised; weights of a deviation of 0.02."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, hidden: Tensor) -> Tensor:
        taken = (part(hidden)[:, None] for part in (self.query, self.key, self.value))
        found = F.scaled_dot_product_attention(*taken)[:, 0]
        hidden = self.first(hidden + self.out(found))
        return self.second(hidden + self.narrow(F.gelu(self.wide(hidden))))


class Attention(nn.Module):
    """Ids `(B, L)` -> logits; its blocks are its own attributes, as one writes a small network."""

    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.words(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden.mean(1))


class Mixing(Attention):
    """Subtracts the mean over the batch."""

    def forward(self, ids: Tensor) -> Tensor:
        logits = super().forward(ids)
        return logits - logits.mean(0)


class Unused(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(3, 3)


class Strict(Attention):
    """Knows the ids by another name."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens)
