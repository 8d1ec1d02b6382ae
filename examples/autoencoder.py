"""A variational autoencoder: samples without a target, three outputs, a loss of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def build(num_train: int = 963) -> tuple[Tensor, Tensor]:
    """Points near a curve in eight dimensions: a tensor is a data set, too."""
    generator = torch.Generator().manual_seed(0)
    along = torch.rand(num_train + 300, 1, generator=generator) * 6
    points = torch.sin(along + torch.arange(8.0) / 2)
    points += 0.02 * torch.randn(points.shape, generator=generator)
    return points[:num_train], points[num_train:]


class Autoencoder(nn.Module):
    def __init__(self, width: int = 64, latent: int = 2) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Linear(width, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, width), nn.GELU(), nn.Linear(width, 8))

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(points).chunk(2, dim=1)
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        return self.decoder(mean + noise * (0.5 * log_variance).exp()), mean, log_variance


def evidence(outputs: tuple[Tensor, Tensor, Tensor], points: Tensor) -> Tensor:
    """The negative evidence lower bound of every sample `(B,)`."""
    decoded, mean, log_variance = outputs
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
    return (decoded - points).square().sum(1) / 0.02 + divergence
