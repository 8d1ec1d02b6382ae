"""`logging.gradients`: how large each parameter's gradient is, and how far a step moves it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.engines.dtensor import full_tensor
from trainer.records.sinks import Record


class GradientLog:
    """Measures every N-th optimizer step; the other steps pay for one comparison.

    Per parameter: the L2 norm of its gradient as the optimizer used it (unscaled, clipped), and the
    update-to-weight ratio, |w after - w before| / |w before|. About 1e-3 is usual; 1e-5 hardly
    learns, 1e-1 forgets. A parameter that was all zeros is compared with what it became.
    """

    def __init__(self, module: nn.Module, every_steps: int | None) -> None:
        self.every_steps = every_steps
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.before: list[Tensor] = []

    @property
    def watching(self) -> bool:
        """Whether the step that comes next is measured."""
        return bool(self.before)

    def until_watched(self, step: int) -> int:
        """Steps before the next one that is to be measured; 1 if that is the next one."""
        if self.every_steps is None:
            return 1 << 62
        return (self.every_steps - 1 - step % self.every_steps) or 1

    def prepare(self, step: int) -> None:
        """Before the step after `step` finished ones: keep the weights if it is to be measured."""
        due = self.every_steps is not None and (step + 1) % self.every_steps == 0
        self.before = [p.detach().clone() for p in self.parameters.values()] if due else []

    @torch.no_grad()
    def measure(self) -> Record:
        """After a step that was prepared for. Waits for the device, once.

        Returns:
            `gradients/NAME/norm` and `gradients/NAME/update_ratio` of every parameter that has a
            gradient, under its name in the state dict.
        """
        assert self.before
        names, columns = [], []
        for (name, parameter), before in zip(self.parameters.items(), self.before, strict=True):
            if parameter.grad is not None:
                names.append(name)
                columns += [parameter.grad, parameter - before, before, parameter]
        self.before = []
        if not names:
            return {}
        norms = torch.stack([full_tensor(torch.linalg.vector_norm(c.float())) for c in columns])
        gradient, moved, before, after = norms.view(-1, 4).unbind(1)
        ratio = (moved / torch.where(before > 0, before, after)).where(moved != 0, 0.0)
        record: Record = {}
        rows = torch.stack([gradient, ratio], dim=1).tolist()
        for name, row in zip(names, rows, strict=True):
            record[f"gradients/{name}/norm"], record[f"gradients/{name}/update_ratio"] = row
        return record
