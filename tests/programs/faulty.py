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

LATE_SECONDS = 9


class Net(MLP):
    """An MLP whose rank 1 does something wrong in its `at`-th training forward pass.

    With a `once` file the fault happens only while the file does not exist. `slow`: seconds that
    rank 1 takes longer than the others, in every pass.
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
        slow: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(input_shape, num_classes, **kwargs)
        self.fault, self.at, self.once = fault, at, once
        self.sleep, self.evaluation_sleep = sleep, evaluation_sleep
        self.slow = slow if os.environ.get("RANK") == "1" else 0.0
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        training = self.training and bool(inputs.any())  # DDP's warm-up pass is over zeros
        time.sleep(self.sleep + self.slow if self.training else self.evaluation_sleep)
        self.calls += training
        culprit = "0" if self.fault == "skip" else "1"  # rank 1 skips what rank 0 does
        if training and self.calls == self.at and os.environ.get("RANK") == culprit:
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
        if fault == "late":
            time.sleep(LATE_SECONDS)
        if fault == "skip":
            torch.distributed.all_reduce(torch.ones(7))
        if fault == "drift":
            with torch.no_grad():
                next(self.parameters()).view(-1)[0] += 1e-6
