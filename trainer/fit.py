"""A run from a script or a notebook, with objects where a config has import paths.

    from convoy import fit

    run = fit(model=Net(), data=(train_set, test_set), loss=F.cross_entropy, epochs=5, name="mine")
    run.metrics, run.model, run.history, run.directory

It is what `convoy train` does, in a process that is left as it was found.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from configs.errors import InputError
from configs.given import handing_over
from configs.load import load_keys
from configs.schema import RunConfig
from trainer.checkpoints.state import host_copy
from trainer.engines.dtensor import full_state, is_sharded, load_full_state
from trainer.loop import Run
from trainer.networks.models import build_model
from trainer.networks.module_state import load_non_persistent_buffers, non_persistent_buffers
from trainer.objects import SHORT, Handed, task_of
from trainer.ranks.collectives import broadcast_, broadcast_object
from trainer.ranks.launcher import guess
from trainer.ranks.process_state import process_state_kept
from trainer.ranks.runtime import Runtime
from trainer.ranks.start_watch import watched_start
from trainer.ranks.stop_signals import (
    EXIT_PREEMPTED,
    StopRequest,
    in_main_thread,
    stop_on_signals,
    stop_with_parent,
)
from trainer.records.jsonl import FILE_NAME
from trainer.records.quiet_stream import QuietStream
from trainer.session import joined, train_to_end

log = logging.getLogger("convoy")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Outcome:
    """What became of a run; the same on every rank."""

    status: Literal["completed", "preempted"]
    """Preempted: asked to stop, and saved. The same call goes on from there."""
    step: int
    """Optimizer steps taken."""
    metrics: dict[str, float]
    """What the last evaluation said: of the test set, or else of the one that chooses."""
    best: dict[str, float]
    """The same of the best weights on the set that chooses; empty before the first evaluation."""
    model: nn.Module
    """A module of its own in eval mode, with the weights as they were evaluated last."""
    history: list[dict[str, Any]]
    """The records of metrics.jsonl."""
    directory: Path
    config: RunConfig

    def __repr__(self) -> str:
        metrics = ", ".join(f"{name} {value:.6g}" for name, value in self.metrics.items())
        return (
            f"<run {self.directory}, {self.status} at step {self.step}: {metrics or 'no metrics'}>"
        )


def fit(
    model: Any = None,
    data: Any = None,
    loss: Any = None,
    *,
    metrics: Any = None,
    task: Any = None,
    optimizer: Any = None,
    schedule: Any = None,
    lr: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    name: str | None = None,
    config: str | Path | None = None,
    **keys: Any,
) -> Outcome:
    """Train a run, or go on with it: the same call continues what was interrupted, and gives back
    what is finished.

    Under torchrun every rank calls it with the same arguments.

    Args:
        model: A module, of which a copy is trained; or a class or function that makes one.
        data: Data sets (train, test) or (train, validation, test), or a function that makes them.
        loss: (outputs, targets) -> the loss of each sample or output, or its mean.
        metrics: A list of metrics (protocol: trainer/objective/metrics.py).
        task: classification, multilabel, regression, or a Task.
        optimizer, schedule: A name, or a class of torch's or one's own.
        lr, epochs: Peak learning rate; passes over the training set.
        batch_size: Samples per optimizer step, over all ranks.
        name: Name of the run; its directory is runs/NAME unless `output_dir` is given.
        config: A YAML file or a recipe; what is given here wins.
        keys: Any other key of a config, as a group (`train={"clip_norm": 1.0}`), or with its dots
            (`**{"train.clip_norm": 1.0}`). Each of the above may be a group of keys, too.

    Raises:
        InputError: For what cannot be trained; every rank raises it alike.
        RunFailed: If the run cannot go on, such as for a loss that is not finite.
    """
    arguments = {
        "model": model,
        "data": data,
        "loss": loss,
        "metrics": metrics,
        "task": task,
        "optimizer": optimizer,
        "schedule": schedule,
        "lr": lr,
        "epochs": epochs,
        "batch_size": batch_size,
        "name": name,
    }
    arguments = {key: value for key, value in arguments.items() if value is not None} | keys
    if config is None:
        _complete(arguments)
    handed = Handed.of(arguments)
    loaded = load_keys(handed.keys, config=None if config is None else str(config), also=[*SHORT])
    _check_process(loaded)
    return _fit(loaded, handed)


def _complete(arguments: dict[str, Any]) -> None:
    """What follows from the arguments where no config says it.

    Raises:
        InputError: If there is nothing to train, or to train on.
    """
    for what, example in (("model", "Net()"), ("data", "(train_set, test_set)")):
        if not any(key.partition(".")[0] == what for key in arguments):
            raise InputError(
                f"{what} of fit()",
                expected=f"one: {what}={example}",
                remedy="Or name a config that has it: config='configs/mnist.yaml'.",
            )
    loss = arguments.get("loss")
    if any(key.partition(".")[0] == "task" for key in arguments):
        return
    if task := task_of(loss, arguments.get("data")):
        arguments["task"] = task
    elif loss is F.cross_entropy:  # a classification's own
        del arguments["loss"]


def _check_process(config: RunConfig) -> None:
    """Refuse what cannot be done in a program of the user's."""
    if config.dry_run.world_size is not None:
        raise InputError(
            "dry_run.world_size",
            given=config.dry_run.world_size,
            expected="null in fit()",
            remedy="Use `convoy train` with a config for a report on a run of another world.",
        )
    if dist.is_available() and dist.is_initialized():
        raise InputError(
            "fit() in a process group",
            expected="a process without one",
            remedy="Start the ranks with torchrun and let fit() connect them: leave "
            "init_process_group out, or call destroy_process_group before.",
        )


def _fit(config: RunConfig, handed: Handed) -> Outcome:
    several, listens = guess(os.environ).world_size > 1, in_main_thread()
    with ExitStack() as stack:
        stack.enter_context(process_state_kept())
        stack.enter_context(handing_over(handed.objects))
        stack.enter_context(contextlib.redirect_stdout(QuietStream(sys.stdout)))
        stop = stack.enter_context(stop_on_signals(raises=not several))
        started: Callable[[], None] = lambda: None  # noqa: E731
        if not listens:
            log.info("fit() runs in a thread, where Python hears no signals: Ctrl-C does not save")
        elif several:
            started = stack.enter_context(watched_start(EXIT_PREEMPTED))
            stop_with_parent()
        runtime = stack.enter_context(joined(config))
        if handed.model is not None:
            share_weights(runtime, handed.model)
        try:
            return _trained(config, runtime, stop, started)
        finally:
            gc.collect()  # while there is a process group: see `_trained`


def _trained(
    config: RunConfig, runtime: Runtime, stop: StopRequest, started: Callable[[], None]
) -> Outcome:
    """The outcome of a run, of which nothing is left when this returns.

    What DDP keeps of a process group must go before the group does: it would end the group's
    threads with Python's lock in its hands, for which one of them may be waiting.
    """
    try:
        return _outcome(*train_to_end(config, runtime, stop, started))
    except BaseException as error:
        if runtime.world_size > 1:
            traceback.clear_frames(error.__traceback__)
        raise


def share_weights(runtime: Runtime, model: nn.Module) -> None:
    """Give a module the weights that it has on rank 0: every rank may have drawn its own."""
    if runtime.world_size == 1:
        return
    for tensor in (*model.parameters(), *model.buffers()):
        there = tensor.detach().to(runtime.device).contiguous()
        broadcast_(runtime, [there])
        tensor.detach().copy_(there)


def _outcome(run: Run, status: Any) -> Outcome:
    """What a program gets of a run, and nothing that keeps the process group alive."""
    progress, file = run.state.progress, run.directory.path / FILE_NAME
    history = file.read_text(encoding="utf-8").splitlines() if run.runtime.is_main else []
    return Outcome(
        status=status,
        step=progress.step,
        metrics=dict(progress.test or progress.metrics),
        best=dict(progress.best),
        model=_module(run),
        history=[json.loads(line) for line in broadcast_object(run.runtime, history)],
        directory=run.directory.path,
        config=run.config,
    )


def _module(run: Run) -> nn.Module:
    """A module as its author made it, without what an engine does to one, with the weights that
    were evaluated."""
    trained = run.state.average.module if run.state.average else run.state.engine.module
    weights = full_state(trained)
    if any(map(is_sharded, trained.state_dict().values())):
        weights = broadcast_object(run.runtime, host_copy(weights))
    model = build_model(
        run.config.model,
        input_shape=run.data.input_shape,
        num_classes=run.data.num_classes,
        seed=run.config.seed,
        weights_follow=True,
    )
    load_full_state(model, weights)
    load_non_persistent_buffers(model, host_copy(non_persistent_buffers(trained)))
    return model.to(run.runtime.device).eval()
