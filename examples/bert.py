"""Hugging Face's BERT on batches with names: nothing here is there for this trainer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification


class Sentences(torch.utils.data.Dataset):
    """Token ids of several lengths, as a tokenizer gives them; which word comes more often."""

    num_classes = 2

    def __init__(self, num_samples: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(5, 13, (num_samples,), generator=generator).tolist()
        self.ids = [torch.randint(5, 25, (n,), generator=generator) for n in lengths]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self.ids[index]
        return {"input_ids": ids, "labels": (ids < 15).float().mean().gt(0.5).long()}


def build(num_train: int = 963) -> tuple[Sentences, Sentences]:
    return Sentences(num_train, seed=0), Sentences(300, seed=1)


def model() -> nn.Module:
    config = BertConfig(
        vocab_size=25, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=16, num_labels=2,
    )  # fmt: skip
    return BertForSequenceClassification(config)
