"""A model that keeps what it says in eval mode, so that a test can compare two processes of it."""

from __future__ import annotations

from torch import Tensor

from trainer.networks.mlp import MLP

RECORDED: list[Tensor] = []


class Recorder(MLP):
    """The MLP; RECORDED grows by the logits of every batch that is not trained on."""

    def forward(self, inputs: Tensor) -> Tensor:
        logits = super().forward(inputs)
        if not self.training:
            RECORDED.append(logits.detach().clone())
        return logits
