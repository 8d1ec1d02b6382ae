"""Everything that continues a run exactly, captured and restored as a whole."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from configs.errors import InputError, one_line
from trainer.checkpoints.checkpoint_parts import Part
from trainer.checkpoints.saved_state import check_optimizer, check_trainer
from trainer.engines.dtensor import full_state, load_full_state
from trainer.engines.engine import Engine
from trainer.engines.scalars import names_of_scalars
from trainer.networks.memory_format import lay_out_state
from trainer.networks.module_state import load_non_persistent_buffers, non_persistent_buffers
from trainer.objective.meter import Meter
from trainer.objective.selection import Selection
from trainer.optim.average import Average
from trainer.optim.schedule import Schedule
from trainer.ranks.collectives import gather_objects
from trainer.ranks.precision import Precision
from trainer.ranks.rng import capture_rng, restore_rng, seed_stream
from trainer.ranks.runtime import Runtime


@dataclass(slots=True)
class Progress:
    """How far a run has come: plain numbers, the same on every rank."""

    step: int = 0
    """Optimizer steps taken."""
    global_batches: int = 0
    """Global batches delivered; more than `step` by the steps that fp16 skipped."""
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    elapsed_seconds: float = 0.0
    """Wall time of the run over all its restarts."""
    evaluation_due: bool = False
    """An evaluation was interrupted and comes first when the run continues."""
    test_due: bool = False
    """The same of the test at the end of a run that chooses on a validation set."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What the latest evaluation said, by name; empty before the first."""
    best: dict[str, float] = field(default_factory=dict)
    """The same of the best one, at `best_step`."""
    best_step: int = 0
    evaluated_step: int = -1
    """Step of the latest evaluation."""
    evaluations_without_gain: int = 0
    """In a row, for early stopping."""
    to_beat: dict[str, float] = field(default_factory=dict)
    """The evaluation that another must beat by `train.min_gain`."""
    test: dict[str, float] = field(default_factory=dict)
    """What the final weights reach on the test set, where the choice was not made on it."""
    test_best: dict[str, float] = field(default_factory=dict)
    """The same of the weights that were best on the validation set."""

    def evaluated(
        self, values: dict[str, float], selection: Selection, *, min_gain: float, regular: bool
    ) -> None:
        """Take note of an evaluation at this step.

        Only a `regular` one, at the end of an epoch, counts for early stopping: the one at the end
        of a run would not be there in a longer run.
        """
        self.evaluation_due = False
        self.metrics, self.evaluated_step = values, self.step
        self.test, self.test_best = {}, {}  # they were of the end of a shorter run
        if selection.improves(values, self.best):
            self.best, self.best_step = values, self.step
        if not regular:
            return
        self.evaluations_without_gain += 1
        if selection.improves(values, self.to_beat, by=min_gain):
            self.to_beat, self.evaluations_without_gain = values, 0

    @property
    def just_evaluated(self) -> bool:
        """Whether the latest evaluation was of the weights as they are now."""
        return self.evaluated_step == self.step and not self.evaluation_due

    @property
    def interrupted(self) -> bool:
        """Whether an evaluation comes first when the run continues."""
        return self.evaluation_due or self.test_due

    def state_dict(self) -> dict[str, Any]:
        """As checkpoints hold it; there `global_batches` is called `window`."""
        state = asdict(self)
        return {"step": state.pop("step"), "window": state.pop("global_batches"), **state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, "global_batches" if name == "window" else name, value)


@dataclass(frozen=True, slots=True)
class RunState:
    """The objects of a run that change while it trains."""

    engine: Engine
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    precision: Precision
    average: Average | None
    meter: Meter
    progress: Progress
    seed: int
    runtime: Runtime


def capture(
    run: RunState, *, elapsed_seconds: float | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights under their own names, and everything else; copies in host memory.

    Every rank must call it: random generators and unlogged metrics are gathered from all.

    Args:
        run: The objects of the run.
        elapsed_seconds: Training time of the run over all its restarts; None: what it was when this
            try began.
    """
    weights: dict[str, Any] = host_copy(run.engine.weights())
    trainer = {
        "optimizer": host_copy(run.engine.optimizer_state(run.optimizer)),
        "ema": host_copy(full_state(run.average.module)) if run.average else None,
        **_capture_rest(run, elapsed_seconds),
    }
    return weights, trainer


def capture_part(
    run: RunState, *, elapsed_seconds: float | None = None
) -> tuple[Part, dict[str, Any]]:
    """What this rank writes of a checkpoint in parts, and everything else; see `capture`.

    No rank holds more than its own rows.
    """
    part = Part(run.runtime.rank, run.runtime.world_size)
    module, average, optimizer = run.engine.module, run.average, run.optimizer.state_dict()
    scalars = names_of_scalars(module)
    extra = part.take("model", module.state_dict(), plain=True, scalars=scalars)
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    own = {
        index: part.take(
            f"optimizer/{index}",
            state,
            plain=False,
            scalars=state if hasattr(parameters[index], "was_scalar") else (),
        )
        for index, state in optimizer["state"].items()
    }
    ema = average and part.take("ema", average.module.state_dict(), plain=True, scalars=scalars)
    trainer = {
        "optimizer": host_copy(optimizer | {"state": own}),
        "ema": ema,
        **_capture_rest(run, elapsed_seconds),
    }
    return part, trainer | {"extra_state": host_copy(extra)} if extra else trainer


def _capture_rest(run: RunState, elapsed_seconds: float | None) -> dict[str, Any]:
    """What is neither weights nor optimizer state: small, and gathered from all ranks."""
    mine = {
        "rng": capture_rng(run.runtime.device),
        "meter": run.meter.state_dict(),
        "reduction": host_copy(run.engine.reduction_state()),
    }
    progress = run.progress.state_dict()
    if elapsed_seconds is not None:
        progress["elapsed_seconds"] = elapsed_seconds
    return {
        "progress": progress,
        "optimizer_class": type(run.optimizer).__name__,
        "schedule": run.schedule.state_dict(),
        "scaler": run.precision.scaler.state_dict(),
        "buffers": host_copy(non_persistent_buffers(run.engine.module)),
        "device_type": run.runtime.device.type,
        "ranks": gather_objects(run.runtime, mine),
    }


def restore(
    run: RunState, weights: dict[str, Any], trainer: dict[str, Any], *, exact: bool
) -> list[str]:
    """Put a captured state back, on any number of ranks.

    Returns:
        What could not be the same as before, for the log.

    Raises:
        InputError: If the state does not belong to this model, optimizer or precision.
    """
    try:
        check_trainer(trainer, Progress().state_dict())
        run.engine.load_weights(weights)
        load_non_persistent_buffers(run.engine.module, trainer.get("buffers", {}))
        if run.average is not None:  # an average begun later starts from the weights
            load_full_state(run.average.module, trainer["ema"] or weights)
        _restore_optimizer(run.engine, run.optimizer, trainer)
        run.schedule.load_state_dict(trainer.get("schedule", {}))
        if run.precision.scaler.is_enabled() and trainer["scaler"]:
            run.precision.scaler.load_state_dict(trainer["scaler"])
        run.progress.load_state_dict(trainer["progress"])
        return _restore_ranks(run, trainer, exact=exact)
    except Exception as error:  # of torch's, and of optimizers and schedulers of the user's own
        raise InputError(
            "the checkpoint does not fit this run",
            given=one_line(error, named=True),
            expected="the same model and optimizer",
            remedy="Use the config that lies beside it, or --checkpoint.resume never.",
        ) from None


def _restore_ranks(run: RunState, trainer: dict[str, Any], *, exact: bool) -> list[str]:
    """What every rank has of its own; returns lines for the log."""
    ranks, device_type, runtime = trainer["ranks"], trainer["device_type"], run.runtime
    if len(ranks) == runtime.world_size and device_type == runtime.device.type:
        run.meter.load_state_dict(ranks[runtime.rank]["meter"])
        restore_rng(ranks[runtime.rank]["rng"], runtime.device)
        run.engine.load_reduction_state(ranks[runtime.rank].get("reduction", {}))
        return []
    # Unlogged metrics are sums: rank 0 takes over those of ranks that are no more.
    for saved in ranks if runtime.is_main else []:
        part = Meter()
        part.load_state_dict(saved["meter"])
        run.meter.merge(part)
    seed_stream(run.seed, "rank", runtime.rank, "from window", run.progress.global_batches)
    if exact:
        return []  # every shard has a stream of its own, whoever computes it
    notes = []
    if any("iter" in saved.get("reduction", {}) for saved in ranks):
        notes = ["what PowerSGD left out so far is lost with the ranks that knew it"]
    return [
        *notes,
        f"saved on {len(ranks)} ranks ({device_type}), continued on {runtime.world_size} "
        f"({runtime.device.type}): dropout draws new random numbers from here on "
        "(parallel.reduction: exact would not)",
    ]


def _restore_optimizer(
    engine: Engine, optimizer: torch.optim.Optimizer, trainer: dict[str, Any]
) -> None:
    """Its running averages come from the checkpoint, its hyperparameters from the config."""
    saved = trainer["optimizer_class"]
    if saved not in [kind.__name__ for kind in type(optimizer).__mro__]:
        raise ValueError(f"state of {saved} for an optimizer {type(optimizer).__name__}")
    options = [
        {name: value for name, value in group.items() if name not in ("params", "lr")}
        for group in optimizer.param_groups
    ]
    check_optimizer(trainer["optimizer"], optimizer)
    engine.load_optimizer_state(optimizer, copy.deepcopy(trainer["optimizer"]))
    lay_out_state(optimizer)
    for group, chosen in zip(optimizer.param_groups, options, strict=True):
        group.update(chosen)


def host_copy(value: Any) -> Any:
    """A deep copy with every tensor in host memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, dict):
        return {key: host_copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(host_copy(item) for item in value)
    return copy.deepcopy(value)
