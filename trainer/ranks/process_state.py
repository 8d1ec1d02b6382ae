"""A run in a process that is not its own: it is left as it was found."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from configs.visible import LogLines
from data.loading.workers import borrowed_rng, end_workers
from trainer.ranks.launcher import guess

log = logging.getLogger("convoy")


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Inside, a run may do with random generators, settings and the log as it likes.

    Afterwards random generators, torch's settings, environment variables and sys.path are as they
    were, and nothing of it is left to be done when the process ends.
    """
    threads = torch.get_num_threads()
    flushes = not torch.full((), 1e-310, dtype=torch.float64).mul(1.0).item()
    path, variables = list(sys.path), dict(os.environ)
    gpus = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    states, seed = torch.cuda.get_rng_state_all() if gpus else [], torch.initial_seed()
    device = torch.cuda.current_device() if gpus else None
    with (
        borrowed_rng(),
        _log_shown(),
        _products_kept(),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        try:
            yield
        finally:
            if device is not None:
                torch.cuda.set_rng_state_all(states)
                torch.cuda.set_device(device)
            elif torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.manual_seed_all(seed)  # as it would have been at its first use
            torch.set_num_threads(threads)
            torch.set_flush_denormal(flushes)
            sys.path[:] = path
            for name in os.environ.keys() - variables.keys():
                del os.environ[name]
            os.environ.update(variables)
            if not multiprocessing.active_children():
                atexit.unregister(end_workers)


@contextmanager
def _products_kept() -> Iterator[None]:
    """Multiply float32 matrices afterwards as before, whichever of torch's two ways said how: it
    does not tell by the old one what the new one has set."""
    places = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    precisions = [place.fp32_precision for place in places]
    named = None
    with suppress(RuntimeError):
        named = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        if named is not None:
            torch.set_float32_matmul_precision(named)
        for place, precision in zip(places, precisions, strict=True):
            place.fp32_precision = precision


@contextmanager
def _log_shown() -> Iterator[None]:
    """Show the lines of a run on rank 0, its errors on the others, unless the program has its own
    way with them."""
    level, handlers = log.level, list(log.handlers)
    if not log.hasHandlers():
        log.addHandler(LogLines())
    if level == logging.NOTSET:
        log.setLevel(logging.INFO if guess(os.environ).is_main else logging.ERROR)
    try:
        yield
    finally:
        log.handlers[:] = handlers
        log.setLevel(level)
