"""What a run begins with: weights that were drawn or given, or a checkpoint of its own."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.identity import changes, differences, identity
from configs.read_files import read_yaml
from configs.schema import RunConfig
from data.facts import read_model
from data.normalize import Normalize
from trainer.cards import GO_ON
from trainer.checkpoints.atomic_files import follow
from trainer.checkpoints.checkpoint import Refused, load_checkpoint, wait_until_visible
from trainer.checkpoints.checkpoint_folder import Good, newest_good
from trainer.checkpoints.initial_weights import load_weights, read_weights, weights_digest
from trainer.checkpoints.object_store import fetch_newer, find_store
from trainer.checkpoints.run_directory import CONFIG, Resume, RunDirectory
from trainer.checkpoints.state import RunState, restore
from trainer.components import Components
from trainer.due import End
from trainer.hook import find_hook
from trainer.ranks.collectives import broadcast_object, raise_on_all_ranks
from trainer.ranks.runtime import Runtime
from trainer.records.tensorboard import check_tensorboard

logger = logging.getLogger("convoy")


def claim_and_decide(config: RunConfig, directory: RunDirectory) -> Resume:
    """What to continue from, decided under the lock: nobody may save in between."""
    check_tensorboard(config.logging)
    store = find_store(config)
    directory.claim()
    newest = None
    if store is not None and config.checkpoint.resume == "auto":
        newest = fetch_newer(store, directory.checkpoints)
    return decide_resume(config, directory, newest)


def decide_resume(
    config: RunConfig,
    directory: RunDirectory,
    newest: tuple[Good | None, list[str]] | None = None,
) -> Resume:
    """Decide what a config continues from, by `checkpoint.resume`; changes nothing on disk.

    Args:
        config: The run that starts.
        directory: Of that run.
        newest: What `newest_good` finds there, if the caller has asked already.

    Raises:
        InputError: If an explicit path is wrong, no checkpoint verifies, or the unfinished run in
            the directory is another one.
    """
    mode, path = config.checkpoint.resume, directory.path
    if mode == "never":
        return Resume(None, 0, [])
    if mode != "auto":
        return _explicit(config, Path(mode).expanduser())
    chosen, rejected = newest or newest_good(directory.checkpoints)
    if chosen is None:
        if rejected:
            raise InputError(
                f"no checkpoint in {directory.checkpoints} can be trusted ({'; '.join(rejected)})",
                expected="one that verifies",
                remedy="Use --checkpoint.resume never to start afresh; the old files are kept.",
            )
        return Resume(None, 0, [])
    changed = differences(chosen.manifest["identity"], identity(config))
    if not changed:
        return _continued(config, chosen, rejected)
    if directory.status() == "completed":
        return Resume(None, 0, [f"{path} holds a finished run with {changed}"])
    raise InputError(
        f"{path} holds an unfinished run with another config ({changed})",
        expected="the same config to continue it",
        remedy="Choose another --name; or --checkpoint.resume never to start afresh (the old run "
        f"is moved aside); or --checkpoint.resume {path} to continue it as changed.",
    )


def _explicit(config: RunConfig, given: Path) -> Resume:
    """Continue from a checkpoint directory, or from the newest good one of a run directory."""
    path, newest = follow(given), None
    rejected: list[str] = []
    if (path / "checkpoints").is_dir():
        newest, rejected = newest_good(path / "checkpoints")
    try:
        return _continued(config, newest or Good.at(path), rejected)
    except Refused as reason:
        raise InputError(
            "checkpoint.resume",
            given=str(given),
            expected="auto, never, or the path of a checkpoint or run directory",
            remedy=f"It was refused because {'; '.join([*rejected, str(reason)])}.",
        ) from None


def _continued(config: RunConfig, chosen: Good, notes: list[str]) -> Resume:
    """From a checkpoint, with the facts that its run recorded beside it.

    Raises:
        InputError: If model.json is damaged.
    """
    path, manifest = chosen
    content, facts = path.resolve().parents[1] / "model.json", None
    others = changes(manifest["identity"], identity(config))
    if content.is_file() and not any(key.startswith("data.") for key in others):
        facts = read_model(content)[0]
    return Resume(path, manifest["step"], notes, facts, manifest["best_step"])


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


def continue_from(config: RunConfig, resume: Resume, state: RunState) -> list[str]:
    """Load a checkpoint into the finished parts; returns lines for the log."""
    find_hook(config.logging)  # before the directory is opened
    checkpoint = resume.checkpoint
    if checkpoint is None:
        return []
    wait_until_visible(checkpoint)  # rank 0 has seen it
    weights, trainer = load_checkpoint(checkpoint, by_rows=state.engine.sharded)
    notes = restore(state, weights, trainer, exact=config.parallel.reduction == "exact")
    if state.progress.step != resume.step:
        raise InputError(
            f"checkpoint {checkpoint} does not fit this run: trainer.pt",
            given=f"step {state.progress.step}",
            expected=f"step {resume.step}, as its manifest says",
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
