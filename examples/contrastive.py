"""Pictures and texts that belong together, as CLIP learns them: a loss that compares samples.

What a sample is compared with is its micro-batch. Under `parallel.reduction: exact` that is one of
`parallel.shards` parts of the global batch, the same on any number of ranks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset


def build(num_train: int = 963) -> tuple[TensorDataset, TensorDataset]:
    """Vectors that are two views of one thing each."""
    generator = torch.Generator().manual_seed(0)
    things = torch.randn(num_train + 256, 4, generator=generator)
    views = torch.randn(2, 4, 8, generator=generator)
    pictures, texts = (torch.tanh(things @ view) for view in views)
    train, test = slice(num_train), slice(num_train, None)
    return TensorDataset(pictures[train], texts[train]), TensorDataset(pictures[test], texts[test])


class Towers(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.pictures, self.texts = (
            nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Linear(width, 16)) for _ in range(2)
        )
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, pictures: Tensor, texts: Tensor) -> Tensor:
        """The loss: a model that computes it is given both of a pair, the target too."""
        first = F.normalize(self.pictures(pictures), dim=1)
        second = F.normalize(self.texts(texts), dim=1)
        logits = self.scale.exp() * first @ second.T
        own = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
