"""Batches with names and outputs with names, as Hugging Face's models take and give them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Sentences(torch.utils.data.Dataset):
    """Token ids of several lengths; the label says whether small ids outweigh large ones."""

    num_classes = 2

    def __init__(self, num_samples: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(3, 12, (num_samples,), generator=generator).tolist()
        self.ids = [torch.randint(1, 50, (n,), generator=generator) for n in lengths]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self.ids[index]
        return {"input_ids": ids, "labels": (ids < 25).float().mean().gt(0.5).long()}


def build(num_train: int = 963) -> tuple[Sentences, Sentences]:
    return Sentences(num_train, seed=0), Sentences(400, seed=1)


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor


class Classifier(nn.Module):
    """The mean over the words that are there, of a vector for each."""

    def __init__(self, vocabulary: int = 50, width: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.head = nn.Linear(width, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Output:
        hidden = self.words(input_ids) * attention_mask[..., None]
        mean = hidden.sum(1) / attention_mask.sum(1, keepdim=True)
        return Output(logits=self.head(mean), hidden=hidden)
