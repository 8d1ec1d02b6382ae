"""Where the files and records of a run go."""

from __future__ import annotations

import contextlib
import logging
import math
from typing import Any

from configs.errors import InputError
from configs.given import handed_over
from configs.identity import flatten
from configs.read_files import read_json
from configs.schema import RunConfig
from data.found import describe, first_not_finite
from trainer.backward.compile_watch import CompileWatch
from trainer.cards import opening
from trainer.checkpoints.environment import describe_environment
from trainer.checkpoints.finite import FiniteCheck
from trainer.checkpoints.object_store import find_store, forget_newer
from trainer.checkpoints.run_directory import ENVIRONMENT, Resume, RunDirectory
from trainer.checkpoints.state import Progress, RunState
from trainer.components import Components
from trainer.due import End
from trainer.hook import Hook
from trainer.log import RunLog
from trainer.profiling.utilisation import build_utilisation
from trainer.ranks.runtime import Runtime
from trainer.records.console import build_console
from trainer.records.gradient_statistics import GradientLog
from trainer.records.jsonl import JsonlSink
from trainer.records.notes import NotesSink
from trainer.records.pace import Pace
from trainer.records.sinks import RunFacts, Sink, Sinks
from trainer.records.stopwatch import Stopwatch
from trainer.records.tensorboard import TensorBoardSink
from trainer.records.wandb_sink import WandbSink
from trainer.step import TrainStep

logger = logging.getLogger("convoy")


def open_outputs(
    config: RunConfig,
    runtime: Runtime,
    components: Components,
    directory: RunDirectory,
    resume: Resume,
    notes: list[str],
    end: End,
) -> Sinks:
    """On rank 0: the run directory, its records, and whoever else is told of them."""
    if not runtime.is_main:
        return Sinks([])
    for note in [*directory.open(config, resume), *([] if end.reached else notes)]:
        logger.info(note)
    if (store := find_store(config)) is not None:
        step = resume.step if resume.checkpoint is not None else -1
        forget_newer(store, step, lenient=config.checkpoint.resume == "auto" and step >= 0)
    found = describe(components.data)
    for line in opening(config, runtime, components, directory, found):
        logger.info(line)
    environment = describe_environment(runtime, components.execution.to_json())
    if handed_over():
        environment["given"] = _what_was_given(directory, resume)
    if end.reached:  # how it was trained stays true, whoever looks at it afterwards
        with contextlib.suppress(OSError, InputError, TypeError):  # missing or damaged
            environment |= read_json(directory.path / ENVIRONMENT)
    directory.write_environment(environment)
    directory.write_model(components.data.facts(), found.to_json())
    wanted: list[Sink] = [JsonlSink(), *build_console(config.logging.progress)]
    if config.logging.hook is not None:
        wanted.append(NotesSink())
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
            void=_void(end.progress),
        )
    )
    return sinks


def _what_was_given(directory: RunDirectory, resume: Resume) -> dict[str, Any]:
    """What is known of the objects of a program, for environment.json; says what is not.

    Weights that a module came with are no part of the run's identity: most are drawn, and a run
    that goes on has its own. Others than at its start may be meant, so that is said.
    """
    given = {reference: dict(found.facts) for reference, found in handed_over().items()}
    names = ", ".join(f"{facts['key']} {reference}" for reference, facts in given.items())
    logger.info(
        f"given as objects: {names}; the run's identity knows code, options, shapes and some "
        "samples of them, not initial weights, other samples, nor what imported code does"
    )
    before: dict[str, Any] = {}
    if resume.checkpoint is not None:
        with contextlib.suppress(OSError, InputError, AttributeError):  # missing or damaged
            before = read_json(directory.path / ENVIRONMENT).get("given", {})
    for reference, facts in given.items():
        weights = before.get(reference, {}).get("weights_sha256", facts.get("weights_sha256"))
        if weights != facts.get("weights_sha256"):
            facts["weights_sha256"] = weights
            logger.info(
                f"{reference} came with other weights than at the start of this run, which goes on "
                "with its own: choose another name to begin with these"
            )
    return given


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
    compiled: CompileWatch | None = None,
) -> RunLog:
    """The records of a run, on every rank."""
    config, plan, data = components.config, components.plan, components.data

    sizes = plan.global_batch(0).micro_batch_sizes
    recorded = components.execution.cuda_graphs
    utilisation = build_utilisation(
        state.engine.module, components.forward, sizes, components.precision, runtime.device
    )

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
        pace=Pace(
            state.engine,
            runtime,
            recorded,
            utilisation.of,
            every_rank=config.logging.ranks and runtime.world_size > 1,
        ),
        end=end,
        hook=Hook(
            config.logging,
            state=state,
            normalize=components.normalize,
            sinks=sinks,
            watch=watch,
            sharded="FSDP" in components.execution.engine,
        ),
        tokens_per_sample=math.prod(data.input_shape) if data.vocabulary else None,
        compiled=compiled,
    )
