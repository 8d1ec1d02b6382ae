"""What torch is told of how long ranks wait for each other."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch


def record_timeouts(monkeypatch: pytest.MonkeyPatch) -> list[timedelta]:
    """The time-outs that torch is asked for from now on; no process group is needed."""
    asked: list[timedelta] = []
    monkeypatch.setattr(
        torch.distributed, "set_timeout", lambda time, group: asked.append(time), raising=False
    )
    return asked
