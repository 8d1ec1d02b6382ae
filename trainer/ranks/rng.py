"""Random number generators: seeded for a purpose, captured and restored as data."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from data.loading.order import derive_seed


def seed_stream(seed: int, *purpose: object) -> None:
    """Seed every generator that a model may draw from: python, numpy, torch on all devices.

    Args:
        seed: The seed of the run.
        purpose: What the numbers are for, such as "rank", 3: other purposes give other numbers.
    """
    value = derive_seed(seed, *purpose)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.default_generator.manual_seed(value)
    # torch.manual_seed would keep a stack trace for a GPU that may be used later, slowly.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(value)
    if torch.backends.mps.is_available() and not torch.mps._is_in_bad_fork():
        torch.mps.manual_seed(value)
    if torch.xpu.is_initialized():  # type: ignore[no-untyped-call]
        torch.xpu.manual_seed_all(value)


def capture_rng(device: torch.device) -> dict[str, Any]:
    """The state of every generator, as tensors and plain values (loadable with weights_only)."""
    version, internal, gauss = random.getstate()
    legacy: tuple[Any, ...] = np.random.get_state(legacy=True)  # type: ignore[assignment]
    _, keys, position, has_gauss, cached = legacy
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, torch.tensor(internal, dtype=torch.int64), gauss],
        "numpy": [torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
    }
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    elif device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state(device)
    return state


def restore_rng(state: dict[str, Any], device: torch.device) -> None:
    """Put every generator back into a state that `capture_rng` returned.

    Raises:
        KeyError: If the state was captured on another kind of device: it would not be the same run.
    """
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    if device.type == "mps":
        torch.mps.set_rng_state(state["mps"])
    elif device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[device.type], device)
