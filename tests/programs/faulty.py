"""A model with a planted fault, as slow as a test wants it; named by import path."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.networks.mlp import MLP


class Net(MLP):
    """An MLP whose rank 1 does something wrong in its `at`-th training forward pass.

    With a `once` file the fault happens only while the file does not exist.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        fault: str = "",
        at: int = 30,
        once: str = "",
        sleep: float = 0.0,
        evaluation_sleep: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(input_shape, num_classes, **kwargs)
        self.fault, self.at, self.once = fault, at, once
        self.sleep, self.evaluation_sleep = sleep, evaluation_sleep
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        training = self.training and bool(inputs.any())  # DDP's warm-up pass is over zeros
        time.sleep(self.sleep if self.training else self.evaluation_sleep)
        self.calls += training
        if training and self.calls == self.at and os.environ.get("RANK") == "1":
            self.commit(self.fault)
        return super().forward(inputs)

    def commit(self, fault: str) -> None:
        if self.once and os.path.exists(self.once):
            return
        if self.once:
            open(self.once, "w").close()
        if fault == "raise":
            raise KeyError("planted")
        if fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hang":
            os.kill(os.getpid(), signal.SIGSTOP)
        if fault == "drift":
            with torch.no_grad():
                next(self.parameters()).view(-1)[0] += 1e-6
