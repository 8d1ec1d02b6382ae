"""`deterministic: true`: the same bits from start to start, or the name of what has none."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from configs.errors import InputError
from configs.schema import RunConfig
from configs.schema_execution import OTHER_DEVICES

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Which buffers cuBLAS works in: with its own choice, streams race for them.
https://docs.nvidia.com/cuda/cublas/index.html#results-reproducibility"""
GOOD_WORKSPACES = (":4096:8", ":16:8")
NAMED = re.compile(r"(\S+) does not have a deterministic implementation")
"""What torch says of an operation that adds in whatever order its threads come."""


@contextmanager
def deterministic_algorithms(config: RunConfig, device: torch.device) -> Iterator[None]:
    """Inside, a run that asks for it computes with deterministic operations only.

    cuBLAS reads its variable when it is first used, so this comes before anything is computed.
    Afterwards all is as it was.

    Raises:
        InputError: If the device has no such mode, if cuBLAS may have begun otherwise, or, from
            inside, with the name of an operation that is not deterministic.
    """
    if not config.deterministic:
        yield
        return
    if device.type in OTHER_DEVICES:
        raise InputError(
            "deterministic",
            given="true",
            expected=f"false on {device.type}",
            remedy="Its operations are not known to be deterministic: use --parallel.device cpu.",
        )
    before = os.environ.get(WORKSPACE)
    if device.type == "cuda":
        _choose_workspace(before)
    enabled, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    cudnn = torch.backends.cudnn
    chosen = cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        with refused_by_name(), _without_timed_choices(config, device):
            yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        cudnn.deterministic, cudnn.benchmark = chosen
        if before is None:
            os.environ.pop(WORKSPACE, None)


@contextmanager
def refused_by_name() -> Iterator[None]:
    """Turn torch's error about an operation that is not deterministic into one message."""
    try:
        yield
    except RuntimeError as error:
        if not (found := NAMED.search(str(error))):
            raise
        raise InputError(
            f"deterministic: the operation {found[1]}",
            given="one that has no deterministic implementation here",
            expected="deterministic operations only, with deterministic: true",
            remedy="Replace it in the model, the loss or the optimizer, train on another device "
            "(--parallel.device cpu), or use --deterministic false.",
        ) from error


def _choose_workspace(given: str | None) -> None:
    """Have cuBLAS work in buffers of its own for each stream.

    Raises:
        InputError: If another choice was made, or may have been.
    """
    if given is None and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise InputError(
            "deterministic",
            given="true, in a process that has used the GPU",
            expected=f"{WORKSPACE} in its environment before that",
            remedy=f"Begin the program with os.environ[{WORKSPACE!r}] = {GOOD_WORKSPACES[0]!r}.",
        )
    if given is not None and given not in GOOD_WORKSPACES:
        raise InputError(
            f"{WORKSPACE} with deterministic: true",
            given=given,
            expected=" or ".join(GOOD_WORKSPACES),
            remedy="Leave it out: it is set for you.",
        )
    os.environ.setdefault(WORKSPACE, GOOD_WORKSPACES[0])


def _without_timed_choices(config: RunConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Let the compiler choose no kernel by how long it takes, which differs from start to start."""
    enabled = config.compile.enabled
    if enabled is True or (enabled == "auto" and device.type == "cuda"):
        import torch._inductor.config  # slow to import

        patched: AbstractContextManager[Any] = torch._inductor.config.patch(deterministic=True)
        return patched
    return nullcontext()
