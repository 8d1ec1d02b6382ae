"""A run that was trained, ready to be used: its module, and what to feed it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.errors import InputError, one_line
from configs.imports import is_import_path
from configs.load import load_config
from configs.schema import RunConfig
from configs.trust import FLAG
from data.datasets import load_datasets, picture_fit
from data.facts import InputFacts, read_model
from data.normalize import Normalize
from launch.using.named_run import find_checkpoint
from trainer.checkpoints.checkpoint import Refused, load_checkpoint, verify_checkpoint
from trainer.engines.dtensor import load_full_state
from trainer.networks.models import MODELS, build_model
from trainer.networks.module_state import load_non_persistent_buffers, no_larger_than
from trainer.ranks.precision import Precision, build_precision
from trainer.ranks.runtime import Runtime, choose_device, use_device

log = logging.getLogger("convoy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What evaluation, prediction and export need of a run."""

    directory: Path
    checkpoint: Path
    step: int
    weights: str
    """average: what the run evaluated (train.ema_decay, train.swa_from_epoch); raw: the weights."""
    config: RunConfig
    facts: InputFacts
    module: nn.Module
    """The raw module in eval mode, on the device of `runtime`."""
    normalize: Normalize
    precision: Precision
    runtime: Runtime

    @property
    def checkpoint_name(self) -> str:
        """The checkpoint as seen from the run directory."""
        return f"{self.checkpoint.parent.name}/{self.checkpoint.name}"

    @torch.inference_mode()
    def logits(self, inputs: Tensor) -> Tensor:
        """Inputs `(B, *input_shape)` as they are stored -> logits `(B, num_classes)`.

        The operations are those of an evaluation in training, so the same batch on the same kind
        of machine gives the same bits.
        """
        with self.precision.autocast():
            logits: Tensor = self.module(self.normalize(inputs.to(self.runtime.device)))
        return logits


def load_trained(
    given: Path,
    *,
    checkpoint: str | None = None,
    overrides: Sequence[str] = (),
    trust_code: bool = False,
) -> Trained:
    """Load a run through the same code as training; needs its directory only, not its data.

    Args:
        given: A run directory, or one of its checkpoints.
        checkpoint: `best`, `latest` or the path of a checkpoint; default: the one given, else the
            best, else (no evaluation came yet) the latest.
        overrides: Config keys as on a command line, such as `--parallel.device=cpu`.
        trust_code: Whether the directory may name code that is not this project's.

    Raises:
        InputError: If there is no such run or checkpoint, the checkpoint does not verify, its
            weights do not fit the model of config.yaml, or that is somebody's own code.
    """
    directory, path = find_checkpoint(given, checkpoint)
    try:
        manifest = verify_checkpoint(path)
    except Refused as reason:
        raise InputError(
            f"checkpoint {path} cannot be trusted: {reason}",
            expected="the files as they were written",
            remedy="Choose another one with --checkpoint.",
        ) from None
    facts = read_facts(directory, trust_code=trust_code)
    config = load_run_config(directory, overrides, trust_code=trust_code)
    runtime = choose_device(Runtime(launcher="python"), replace(config.parallel, backend="auto"))
    use_device(runtime, config.parallel)
    raw, trainer = load_checkpoint(path)
    module = _build_module(config, facts, raw, directory)
    averaged = config.train.ema_decay is not None or config.train.swa_from_epoch is not None
    average = trainer.get("ema") if averaged else None
    for key, found in (("ema", average), ("buffers", trainer.get("buffers"))):
        if not isinstance(found, dict | None):
            raise InputError(f"{key} of {path}", given=type(found).__name__, expected="a mapping")
    _load_weights(module, average or raw, trainer.get("buffers") or {}, path)
    return Trained(
        directory=directory,
        checkpoint=path,
        step=manifest["step"],
        weights="average" if average else "raw",
        config=config,
        facts=facts,
        module=module.to(runtime.device).eval().requires_grad_(False),
        normalize=Normalize(facts, runtime.device),
        precision=build_precision(config.precision, runtime.device),
        runtime=runtime,
    )


def _build_module(
    config: RunConfig, facts: InputFacts, weights: dict[str, Any], directory: Path
) -> nn.Module:
    """The module of a run, in the size of its weights: a config can ask for any."""

    def build() -> nn.Module:
        return build_model(
            config.model,
            input_shape=facts.input_shape,
            num_classes=facts.num_classes,
            seed=config.seed,
            weights_follow=True,
        )

    if is_import_path(config.model.name):
        return build()
    with no_larger_than(weights, f"the model of {directory / 'config.yaml'}"):
        if config.model.name not in MODELS:
            return build()
        with torch.device("meta"):
            build()
    return build()


def require_classes(config: RunConfig) -> None:
    """Refuse a run that does not tell classes apart, where only classes make sense.

    Raises:
        InputError: With the task.
    """
    if config.task.name != "classification":
        raise InputError(
            "task.name",
            given=config.task.name,
            expected="classification",
            remedy="The metrics of other tasks are in metrics.jsonl and summary.json of the run.",
        )


def load_run_config(
    directory: Path, overrides: Sequence[str] = (), *, trust_code: bool
) -> RunConfig:
    """The config of a run directory; from then on it runs no code that only it names."""
    command = ["--config", str(directory / "config.yaml"), *([FLAG] if trust_code else [])]
    return load_config([*command, *overrides], prog="", description="", of_run=True)


def read_facts(directory: Path, *, trust_code: bool = False) -> InputFacts:
    """`model.json` of a run; an older run has none, then they are found from its data, or one that
    does not say what was done to pictures, then its config does.

    Args:
        directory: Of the run.
        trust_code: See `load_trained`.

    Raises:
        InputError: If the file is damaged, or neither it nor the data are there.
    """
    path = directory / "model.json"
    try:
        facts, content = read_model(path)
    except FileNotFoundError:
        log.info(f"{path} is missing: reading the training data for shape and normalisation")
        config = load_run_config(directory, trust_code=trust_code)
        return load_datasets(config.data, seed=config.seed).facts()
    if "fit" in content:
        return facts
    config = load_run_config(directory, trust_code=trust_code)
    return replace(facts, fit=picture_fit(config.data, facts))


def not_finite(name: str, inputs: Tensor, outputs: Tensor) -> InputError:
    """What to say of outputs of one sample that are not finite; its inputs may be to blame."""
    if inputs.is_floating_point() and not inputs.isfinite().all():
        return InputError(
            name,
            given="values that are not finite",
            expected="finite numbers",
            remedy="Repair or drop it in the data.",
        )
    return InputError(
        f"output of the model for {name}",
        given=outputs.tolist(),
        expected="finite numbers",
        remedy="Its training may have diverged: choose another --checkpoint.",
    )


def _load_weights(
    module: nn.Module, weights: dict[str, Any], buffers: dict[str, Any], path: Path
) -> None:
    try:
        load_full_state(module, weights)
        load_non_persistent_buffers(module, buffers)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(
            f"the weights in {path} do not fit the model of config.yaml",
            given=one_line(error),
            expected="the model they were trained as",
        ) from None
