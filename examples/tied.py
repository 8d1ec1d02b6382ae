"""A small GPT of one's own: a tensor of ids as data, the head's weight tied to the embedding's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

VOCABULARY, LENGTH = 32, 16


def build(num_train: int = 203) -> tuple[TensorDataset, TensorDataset]:
    """Rows of ids, six of ten decided by the one before, and the ids that follow each."""
    generator = torch.Generator().manual_seed(0)
    following = torch.randperm(VOCABULARY, generator=generator)
    strays = torch.randint(VOCABULARY, (LENGTH + 1, num_train + 60), generator=generator)
    chance = torch.rand(strays.shape, generator=generator)
    ids = strays.clone()
    for place in range(1, LENGTH + 1):
        ids[place] = following[ids[place - 1]].where(chance[place] < 0.6, strays[place])
    ids = ids.T
    sets = [TensorDataset(part[:, :-1], part[:, 1:]) for part in (ids[:num_train], ids[num_train:])]
    return sets[0], sets[1]


class GPT(nn.Module):
    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width)
        self.places = nn.Parameter(0.1 * torch.randn(LENGTH, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 4 * width, 0.1, "gelu", batch_first=True)
            for _ in range(depth)
        )
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.words.weight
        nn.init.normal_(self.words.weight, std=width**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.words(ids) + self.places[: ids.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], ids.device)
        for block in self.blocks:
            hidden = block(hidden, src_mask=mask, is_causal=True)
        return self.head(hidden)
