"""What a run continues from, and where its files and records go."""

from __future__ import annotations

import contextlib
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.given import handed_over
from configs.identity import flatten
from configs.read_files import read_json, read_yaml
from configs.schema import RunConfig
from data.found import describe, first_not_finite
from data.normalize import Normalize
from trainer.backward.compile_watch import CompileWatch
from trainer.cards import GO_ON, opening
from trainer.checkpoints.checkpoint import MANIFEST, load_checkpoint, wait_until_visible
from trainer.checkpoints.environment import describe_environment
from trainer.checkpoints.finite import FiniteCheck
from trainer.checkpoints.initial_weights import load_weights, read_weights, weights_digest
from trainer.checkpoints.object_store import fetch_newer, find_store, forget_newer
from trainer.checkpoints.run_directory import CONFIG, ENVIRONMENT, Resume, RunDirectory
from trainer.checkpoints.state import Progress, RunState, restore
from trainer.components import Components
from trainer.due import End
from trainer.hook import Hook, find_hook
from trainer.log import RunLog
from trainer.profiling.utilisation import build_utilisation
from trainer.ranks.collectives import broadcast_object, raise_on_all_ranks
from trainer.ranks.runtime import Runtime
from trainer.records.console import build_console
from trainer.records.gradient_statistics import GradientLog
from trainer.records.jsonl import JsonlSink
from trainer.records.notes import NotesSink
from trainer.records.pace import Pace
from trainer.records.sinks import RunFacts, Sink, Sinks
from trainer.records.stopwatch import Stopwatch
from trainer.records.tensorboard import TensorBoardSink, check_tensorboard
from trainer.records.wandb_sink import WandbSink
from trainer.step import TrainStep

logger = logging.getLogger("convoy")


def decide_resume(config: RunConfig, directory: RunDirectory) -> Resume:
    """What to continue from, decided under the lock: nobody may save in between."""
    check_tensorboard(config.logging)
    store = find_store(config)
    directory.claim()
    if store is not None and config.checkpoint.resume == "auto":
        fetch_newer(store, directory.checkpoints)
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
    normalize = Normalize(data, components.normalize.device)
    return replace(components, data=data, normalize=normalize)


def identify_weights(config: RunConfig, runtime: Runtime) -> RunConfig:
    """The config with the digest of `model.weights`, which is part of what the run is.

    Raises:
        InputError: On every rank, if the weights cannot be read.
    """
    if config.model.weights is None or config.model.weights_sha256 is not None:
        return config

    def find() -> str | None:
        return _digest(config) if runtime.is_main else None

    digest = broadcast_object(runtime, raise_on_all_ranks(runtime, find))
    return replace(config, model=replace(config.model, weights_sha256=digest))


def _digest(config: RunConfig) -> str:
    """Of the weights; a run that goes on does without them: its directory knows the digest."""
    given, file = config.model.weights, RunDirectory(config).path / CONFIG
    assert given is not None
    if not Path(given).expanduser().exists() and file.is_file():
        known = (read_yaml(file) or {}).get("model") or {}
        if known.get("weights") == given and known.get("weights_sha256"):
            return str(known["weights_sha256"])
    return weights_digest(read_weights(given))


def start_from(config: RunConfig, components: Components) -> None:
    """Load `model.weights` into the model of a new run, and say what was loaded.

    Raises:
        InputError: If they do not fit, or are not those of the digest.
    """
    if config.model.weights is None:
        return
    weights = read_weights(config.model.weights)
    if (found := weights_digest(weights)) != config.model.weights_sha256:
        raise InputError(
            f"model.weights {config.model.weights}",
            given=f"weights of digest {found}",
            expected=f"{config.model.weights_sha256}, as model.weights_sha256 says",
            remedy="They are other weights than before: leave that key out, and choose another "
            "--name.",
        )
    logger.info(load_weights(components.model, weights, config.model))


def continue_from(config: RunConfig, checkpoint: Path | None, state: RunState) -> list[str]:
    """Load a checkpoint into the finished parts; returns lines for the log."""
    find_hook(config.logging)  # before the directory is opened
    if checkpoint is None:
        return []
    wait_until_visible(checkpoint)  # rank 0 has seen it
    weights, trainer = load_checkpoint(checkpoint, by_rows=state.engine.sharded)
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


def refuse_to_profile_nothing(config: RunConfig, end: End) -> None:
    """Refuse, on every rank alike, to profile a run that is finished."""
    if config.profile.enabled and end.reached:
        raise InputError(
            "--profile",
            given=f"a run that was already finished at step {end.progress.step}",
            expected="steps that can be profiled",
            remedy=f"{GO_ON}.",
        )


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

    sizes = [micro.size for micro in plan.global_batch(0).micro_batches]
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
