"""`train.auto_batch`: the largest micro-batch that fits, the same on every rank."""

from __future__ import annotations

import functools
import gc
import logging
import math
from collections.abc import Callable
from dataclasses import replace

import torch

from configs.errors import InputError
from configs.schema import RunConfig
from trainer.ranks.collectives import max_, raise_on_all_ranks
from trainer.ranks.runtime import Runtime

log = logging.getLogger("convoy")


def fit_micro_batch(
    config: RunConfig,
    runtime: Runtime,
    num_samples: int,
    step_alone: Callable[[RunConfig], None],
) -> RunConfig:
    """The config with the largest micro-batch that every rank has the memory for.

    The global batch stays, and with it what is learned: a smaller micro-batch means more of them.
    Each candidate is one optimizer step over zeros on every rank; one all-reduce says whether it
    was too much for any of them. A micro-batch size that the config gives is the largest one tried.
    On a CPU only an allocation that the system refuses counts as too much; one that it grants and
    cannot keep ends the process.

    Args:
        config: The run.
        runtime: This rank.
        num_samples: In the training set.
        step_alone: Takes a step of a throw-away copy of the run on this rank alone.

    Raises:
        InputError: On every rank alike, if not even one sample fits.
    """
    if config.parallel.strategy != "ddp" or config.parallel.engine != "native":
        raise InputError(
            "train.auto_batch",
            given=f"{config.parallel.engine}, {config.parallel.strategy}",
            expected="parallel.engine native and parallel.strategy ddp",
            remedy="Give train.micro_batch_size instead.",
        )
    for size in candidates(config, runtime.world_size, num_samples):
        trial = replace(config, train=replace(config.train, micro_batch_size=size))
        fits = raise_on_all_ranks(runtime, functools.partial(_fits, trial, runtime, step_alone))
        if not int(max_(runtime, torch.tensor(int(not fits), device=runtime.device))):
            if runtime.is_main:
                number = max(config.train.batch_sizes) // size
                log.info("micro-batches of %d samples fit, %d in a global batch", size, number)
            return trial
    raise InputError(
        "train.auto_batch",
        given="one sample does not fit into memory",
        expected="a smaller model, or more memory on every rank",
        remedy="See parallel.strategy fsdp and parallel.activation_checkpointing.",
    )


def candidates(config: RunConfig, world_size: int, num_samples: int) -> list[int]:
    """Divisors of all global batches from the largest that a rank could use downwards."""
    train, total = config.train, math.gcd(*config.train.batch_sizes)
    parts = config.parallel.shards if config.parallel.reduction == "exact" else world_size
    share = -(-max(train.batch_sizes) // parts)
    divisors = [size for size in range(1, total + 1) if total % size == 0]
    # Above its share a larger micro-batch changes nothing: the smallest such one stands for all.
    enough = next((size for size in divisors if size >= share), total)
    most = min(train.micro_batch_size or total, max(num_samples, 1), enough)
    return [size for size in reversed(divisors) if size <= most]


def _fits(config: RunConfig, runtime: Runtime, step_alone: Callable[[RunConfig], None]) -> bool:
    """Take the step; leave no memory behind."""
    try:
        step_alone(config)
    except (torch.OutOfMemoryError, MemoryError):
        return False
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # the CPU allocator's words
            raise
        return False
    finally:
        if runtime.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
    return True
