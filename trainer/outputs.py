"""What a run continues from, and where its files and records go."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.identity import flatten
from configs.read_files import read_json
from configs.schema import RunConfig
from data.found import describe, first_not_finite
from data.normalize import Normalize
from trainer.checkpoints.checkpoint import MANIFEST, load_checkpoint
from trainer.checkpoints.environment import describe_environment
from trainer.checkpoints.finite import FiniteCheck
from trainer.checkpoints.run_directory import Resume, RunDirectory
from trainer.checkpoints.state import Progress, RunState, restore
from trainer.components import Components
from trainer.due import End
from trainer.log import RunLog
from trainer.networks.module_state import modes_kept
from trainer.ranks.runtime import Runtime
from trainer.records.console import build_console
from trainer.records.gradient_statistics import GradientLog
from trainer.records.jsonl import JsonlSink
from trainer.records.sinks import RunFacts, Sink, Sinks
from trainer.records.stopwatch import Stopwatch
from trainer.records.tensorboard import TensorBoardSink, check_tensorboard
from trainer.records.wandb_sink import WandbSink
from trainer.step import TrainStep

logger = logging.getLogger("convoy")


def decide_resume(config: RunConfig, directory: RunDirectory) -> Resume:
    """What to continue from, decided under the lock: nobody may save in between."""
    check_tensorboard(config.logging)
    directory.claim()
    return directory.decide_resume(config)


def normalised_as_before(components: Components, resume: Resume) -> Components:
    """With the mean and deviation that the weights were trained with: rows that were added since,
    or another way to find them, must not move the inputs of a run that goes on."""
    known, data = resume.facts, components.data
    if known is None or known.input_shape != data.input_shape:
        return components
    kept: dict[str, Any] = {"mean": known.mean, "std": known.std, "scale": known.scale}
    if all(getattr(data, key) == value for key, value in kept.items()):
        return components
    logger.warning(
        "inputs are normalised as the checkpoint's run did, and not as their mean and deviation "
        "would be found today"
    )
    data = replace(data, **kept)
    device = next(components.model.parameters()).device
    return replace(components, data=data, normalize=Normalize(data, device))


def continue_from(config: RunConfig, checkpoint: Path | None, state: RunState) -> list[str]:
    """Load a checkpoint into the finished parts; returns lines for the log."""
    if checkpoint is None:
        return []
    weights, trainer = load_checkpoint(checkpoint)
    notes = restore(state, weights, trainer, exact=config.parallel.reduction == "exact")
    step = read_json(checkpoint / MANIFEST)["step"]
    if state.progress.step != step:
        raise InputError(
            f"checkpoint {checkpoint} does not fit this run: trainer.pt",
            given=f"step {state.progress.step}",
            expected=f"step {step}, as its manifest says",
            remedy="Choose another with --checkpoint.resume PATH.",
        )
    return [f"continuing from {checkpoint} (step {state.progress.step})", *notes]


def open_outputs(
    config: RunConfig,
    runtime: Runtime,
    components: Components,
    directory: RunDirectory,
    resume: Resume,
    notes: list[str],
    progress: Progress,
) -> Sinks:
    """On rank 0: the run directory, its records, and whoever else is told of them."""
    if not runtime.is_main:
        return Sinks([])
    for note in [*directory.open(config, resume), *notes]:
        logger.info(note)
    found = describe(components.data)
    logger.info(found.line())
    if kept := modes_kept(components.model):
        logger.info(f"{kept} modules of the model stay in eval mode, as they came")
    logger.info(components.execution.line())
    environment = describe_environment(runtime, components.execution.to_json())
    directory.write_environment(environment)
    directory.write_model(components.data.facts(), found.to_json())
    wanted: list[Sink] = [JsonlSink(), *build_console(config.logging.progress)]
    if config.logging.tensorboard:
        wanted.append(TensorBoardSink())
    if config.logging.wandb.mode != "disabled":
        wanted.append(WandbSink(config.logging.wandb, config.name))
    sinks = Sinks(wanted)
    sinks.start(
        RunFacts(
            directory=directory.path,
            config=flatten(config),
            environment=environment,
            total_steps=components.schedule.total_steps,
            total_epochs=components.plan.epoch_schedule.epochs(components.schedule.total_steps),
            samples_per_epoch=components.plan.num_samples,
            score_name=components.task.score_name,
            selection=components.selection,
            first_step=resume.step,
            void=_void(progress),
        )
    )
    return sinks


def _void(progress: Progress) -> tuple[str, ...]:
    """What is evaluated again first of all, and may have been recorded before a kill."""
    if progress.evaluation_due:
        return ("eval", "val", "test", "test_best")
    return ("test", "test_best") if progress.test_due else ()


def build_log(
    components: Components,
    runtime: Runtime,
    state: RunState,
    finite: FiniteCheck,
    step: TrainStep,
    directory: RunDirectory,
    sinks: Sinks,
    watch: Stopwatch,
    end: End,
) -> RunLog:
    """The records of a run, on every rank."""
    config, plan, data = components.config, components.plan, components.data

    def bad_sample(global_batch: int) -> int | None:
        return first_not_finite(data.train, plan.samples(global_batch))

    return RunLog(
        config=config,
        runtime=runtime,
        state=state,
        finite=finite,
        step=step,
        epoch_schedule=plan.epoch_schedule,
        task=components.task,
        selection=components.selection,
        chosen_on=data.chosen_on,
        sinks=sinks,
        directory=directory,
        bad_sample=bad_sample,
        gradients=GradientLog(state.engine.module, config.logging.gradients),
        watch=watch,
        end=end,
        tokens_per_sample=math.prod(data.input_shape) if data.vocabulary else None,
    )
