"""Hooks of all sorts for tests: nosy, rude and broken ones."""

from __future__ import annotations

import random

import numpy as np
import torch

from trainer.hook import Moment

SEEN: list[tuple[str, int, bool]] = []
"""After what, at which step, and whether the model was in eval mode, without a graph."""


def look(moment: Moment) -> None:
    """Draws from every generator, runs the model, leaves it in another mode, shows something."""
    random.random()
    np.random.rand(3)
    noise = torch.randn(2, 6, device=moment.device)
    resting = not any(part.training for part in moment.model.modules())
    outputs = moment.model(moment.normalize(noise))
    SEEN.append((moment.after, moment.step, resting and not outputs.requires_grad))
    moment.model.train()
    moment.model(noise)
    for buffer in moment.model.buffers():
        buffer.zero_()
    if moment.is_main:
        value = next(v for k, v in moment.metrics.items() if k.endswith("/loss"))
        moment.text("a/line", f"{moment.after} {moment.step} {value:.4f}")
        moment.picture("blob", torch.linspace(0, 1, 12).view(3, 4))
        moment.histogram("spread", torch.tensor([0.0, 1.0, 2.0, 2.0]))


def meddle(moment: Moment) -> None:
    next(moment.model.parameters()).data[0] += 1


def unfreeze(moment: Moment) -> None:
    next(moment.model.parameters()).requires_grad_(False)


def fail(moment: Moment) -> None:
    raise KeyError("no such metric")
