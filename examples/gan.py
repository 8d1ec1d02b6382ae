"""A GAN: two networks against each other in one step, with one optimizer for both.

Each loss reaches the weights of its own network only: the generator's goes through a critic whose
weights are constants, the critic's sees samples that are constants. So one backward pass gives both
gradients, and every promise of a run holds. Learning rates of their own are `optimizer.groups`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


def build(num_train: int = 963) -> tuple[Tensor, Tensor]:
    """Points on a circle."""
    angles = torch.rand(num_train + 300, generator=torch.Generator().manual_seed(0)) * 6.2832
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    return points[:num_train], points[num_train:]


def layers(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2),
        nn.Linear(64, outputs),
    )  # fmt: skip


class GAN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = layers(4, 2), layers(2, 1)

    def forward(self, real: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        noise = (
            torch.randn(len(real), 4, device=real.device) if self.training else real.repeat(1, 2)
        )
        made = self.generator(noise)
        constant = {name: weight.detach() for name, weight in self.critic.named_parameters()}
        fooled = functional_call(self.critic, constant, (made,))
        return self.critic(real), self.critic(made.detach()), fooled, made


def losses(outputs: tuple[Tensor, ...], real: Tensor) -> Tensor:
    """The losses of critic and generator, added, for every sample `(B,)`."""
    of_real, of_made, fooled, _ = outputs
    critic = F.softplus(-of_real) + F.softplus(of_made)
    return (critic + F.softplus(-fooled)).squeeze(1)


class Radius:
    """How far from the circle what was made lies, on average."""

    width = 1
    higher_is_better = False

    def sums(self, outputs: tuple[Tensor, ...], real: Tensor) -> Tensor:
        return (outputs[-1].norm(dim=1) - 1).abs().sum().reshape(1)

    def compute(self, sums: list[float], count: int) -> dict[str, float]:
        return {"distance": sums[0] / count}
