"""The schedulers of torch.optim.lr_scheduler, stepped by counting and saved as data."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.optim import lr_scheduler

from configs.errors import InputError
from configs.imports import call_with, import_object, is_import_path
from configs.registry import any_case, resolve
from configs.schema_training import ScheduleConfig
from data.loading.epoch_schedule import EpochSchedule
from trainer.objective.selection import Selection
from trainer.optim.optimizers import set_rate
from trainer.optim.saved_schedule import MOVING, alike

Scheduler = lr_scheduler.LRScheduler

SCHEDULERS: dict[str, type[Scheduler]] = {
    name: found
    for name, found in sorted(vars(lr_scheduler).items())
    if isinstance(found, type) and issubclass(found, Scheduler) and not name.startswith("_")
    if found is not Scheduler
}


class StandIn(torch.optim.Optimizer):
    """What a scheduler is attached to: one group with the hyperparameters of an optimizer.

    Schedulers replace the `step` of their optimizer by one that counts, and want to be built after
    it and stepped after it; a stand-in leaves the real one, whoever wraps it, as it is.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, peak: float) -> None:
        options = {k: v for g in optimizer.param_groups for k, v in g.items() if k != "params"}
        super().__init__([torch.zeros(1)], {**options, "lr": peak})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        pass


class TorchSchedule:
    """A scheduler of torch's as a function of how far the run has come.

    Before each step it is brought to where it should be: as many steps as the run has taken since
    the warm-up, or as many as epochs have ended. A step that fp16 skips therefore does not move it,
    and asking twice does not either. One that wants a metric (ReduceLROnPlateau) is stepped after
    the evaluations that `evaluate.every_epochs` asks for; the one at the end of a run does not
    count, or a longer run would differ from one that was continued.

    What it does to the learning rate, and with `cycle_momentum` to momentum and betas, is copied to
    the optimizer's groups.
    """

    def __init__(
        self,
        factory: Callable[..., Any],
        config: ScheduleConfig,
        optimizer: torch.optim.Optimizer,
        *,
        peak: float,
        total_steps: int,
        epoch_schedule: EpochSchedule,
        selection: Selection,
        evaluate_every: int | None,
    ) -> None:
        """See `schedule.build_schedule`; `factory` is a class or a function with its arguments.

        Raises:
            InputError: If it cannot be built, or could not be saved.
        """
        self.total_steps = total_steps
        self.epoch_schedule = epoch_schedule
        self.per_epoch = config.interval == "epoch"
        self.warmup = config.warmup_steps
        self.metric = selection.metric
        self.evaluate_every = evaluate_every
        self.count = 0
        self.stand_in = StandIn(optimizer, peak)
        epochs = epoch_schedule.locate(total_steps - 1).epoch + 1
        length = epochs if self.per_epoch else total_steps - self.warmup
        offered = _offer(factory, config.kwargs, peak=peak, length=length, selection=selection)
        self.made_of = [config.name, config.kwargs, offered, peak, config.interval, self.warmup]
        self.scheduler = _build(factory, config.kwargs, self.stand_in, peak, offered)
        self.wants_metric = _wants_metric(self.scheduler)
        self.moved = ["momentum", "betas"] if _cycles(self.scheduler) else []
        self.stand_in.step()  # a scheduler warns if it is stepped first
        self._check(config, length)

    def _check(self, config: ScheduleConfig, length: int) -> None:
        if self.wants_metric and self.evaluate_every is None:
            raise InputError(
                "evaluate.every_epochs",
                given="null",
                expected=f"a number with schedule.name={config.name}, which acts on evaluations",
            )
        if isinstance(self.scheduler, lr_scheduler.OneCycleLR):
            end = self.scheduler.total_steps
            if end < length:
                raise InputError(
                    "schedule.kwargs",
                    given=config.kwargs,
                    expected=f"a cycle for the {length} {config.interval}s of the run, not {end}",
                )
        file = io.BytesIO()
        torch.save(self.state_dict(), file)
        file.seek(0)
        try:
            torch.load(file, weights_only=True)
        except Exception as error:  # whatever is in a user's scheduler
            raise InputError(
                "schedule.name",
                given=config.name,
                expected="a scheduler whose state_dict() is made of numbers, text, lists and dicts",
                remedy=f"A checkpoint could not be loaded: {str(error).splitlines()[0]}",
            ) from None

    def apply(self, optimizer: torch.optim.Optimizer, step: int, global_batch: int) -> float:
        rate = self._rate(step, global_batch)
        mine = self.stand_in.param_groups[0]
        for group in optimizer.param_groups:
            group.update({key: mine[key] for key in self.moved if key in group})
        set_rate(optimizer, rate)
        return rate

    def _rate(self, step: int, global_batch: int) -> float:
        done = max(step - self.warmup, 0)
        if self.per_epoch:
            done = self.epoch_schedule.locate(global_batch).epoch
        while self.count < done and not self.wants_metric:
            self.scheduler.step()
            self.count += 1
        rising = min((step + 1) / self.warmup, 1.0) if self.warmup else 1.0
        return float(self.stand_in.param_groups[0]["lr"]) * rising

    def evaluated(self, values: dict[str, float], global_batch: int) -> None:
        ended = self.epoch_schedule.epochs_ended(global_batch)
        if self.wants_metric and ended and ended % (self.evaluate_every or 1) == 0:
            self.scheduler.step(values[self.metric])  # type: ignore[arg-type]
            self.count += 1

    def preview(self, steps: Sequence[int]) -> list[float]:
        before = self.state_dict()
        rates = [self._rate(step, step) for step in steps]
        self.load_state_dict(before)
        return rates

    def state_dict(self) -> dict[str, Any]:
        group = {k: v for k, v in self.stand_in.param_groups[0].items() if k != "params"}
        return copy.deepcopy(
            {
                "made_of": self.made_of,
                "count": self.count,
                "group": group,
                "scheduler": self.scheduler.state_dict(),
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a saved one; one of another kind or with other arguments is left alone.

        This one then catches up with the run by counting, as if it had always been in use.

        Raises:
            ValueError: If it is not what `state_dict` gives.
        """
        if state.get("made_of") != self.made_of:
            return
        fresh, state = self.state_dict(), copy.deepcopy(state)
        if type(self.scheduler) in SCHEDULERS.values():  # it takes whatever attribute it is given
            state["scheduler"] = alike(
                "schedule.scheduler", state["scheduler"], fresh["scheduler"], MOVING
            )
        options = {k: v for k, v in fresh["group"].items() if type(v) in (int, float, tuple, list)}
        group = alike("schedule.group", state["group"], options)  # the others are the optimizer's
        if not isinstance(state["count"], int) or state["count"] < 0:
            raise ValueError(f"schedule.count of trainer.pt is {state['count']!r}, not a count")
        self.count = state["count"]
        self.stand_in.param_groups[0].update(group)
        self.scheduler.load_state_dict(state["scheduler"])


def makes_scheduler(found: Callable[..., Any]) -> bool:
    """Whether it is a class of schedulers, or a function of an optimizer that makes one."""
    if isinstance(found, type):
        return issubclass(found, Scheduler)
    return "optimizer" in inspect.signature(found).parameters


def _offer(
    factory: Callable[..., Any],
    kwargs: dict[str, Any],
    *,
    peak: float,
    length: int,
    selection: Selection,
) -> dict[str, Any]:
    """What a class of torch's need not be told: the highest rate, how long, which way is better."""
    if factory not in SCHEDULERS.values():
        return {}
    known: dict[str, Any] = {"max_lr": peak, "T_max": length}
    if not {"epochs", "steps_per_epoch"} & set(kwargs):
        known["total_steps"] = length
    if factory is lr_scheduler.ReduceLROnPlateau:
        known["mode"] = "max" if selection.higher else "min"
    takes = inspect.signature(factory).parameters
    return {key: value for key, value in known.items() if key in takes}


def _build(
    factory: Callable[..., Any],
    kwargs: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    peak: float,
    offered: dict[str, Any],
) -> Scheduler:
    """Call a factory; `schedulers` among its arguments are built first, import paths imported."""
    arguments = {key: _imported(value) for key, value in kwargs.items()}
    if "schedulers" in arguments:
        parts = [_entry(entry) for entry in arguments["schedulers"]]
        arguments["schedulers"] = [
            _build(one, options, optimizer, peak, {"max_lr": peak}) for one, options in parts
        ]
    name = getattr(factory, "__name__", type(factory).__name__)
    try:
        built = call_with(
            "schedule.kwargs", factory, arguments, {**offered, "optimizer": optimizer}
        )
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(
            "schedule.kwargs",
            given=kwargs,
            expected=f"arguments of {name}{inspect.signature(factory)}",
            remedy=f"It says: {error}.",
        ) from None
    if not isinstance(built, Scheduler):
        raise InputError(
            "schedule.name",
            given=name,
            expected="a function (optimizer, ...) -> torch.optim.lr_scheduler.LRScheduler, or "
            "(config, progress, epochs) -> fraction of optimizer.lr",
        )
    return built


def _entry(entry: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    if not isinstance(entry, dict) or "name" not in entry or set(entry) - {"name", "kwargs"}:
        raise InputError(
            "schedule.kwargs.schedulers",
            given=entry,
            expected="{name: LinearLR, kwargs: {total_iters: 5}} for each",
        )
    name = any_case(entry["name"], SCHEDULERS)
    factory = resolve("schedule.kwargs.schedulers", name, SCHEDULERS)
    return factory, dict(entry.get("kwargs") or {})


def _imported(value: Any) -> Any:
    """A function named by import path (`lr_lambda`, `scale_fn`), alone or in a list."""
    if isinstance(value, list):
        return [_imported(item) for item in value]
    if isinstance(value, str) and is_import_path(value):
        return import_object("schedule.kwargs", value)
    return value


def _all(scheduler: Scheduler) -> Iterator[Scheduler]:
    yield scheduler
    for inner in getattr(scheduler, "_schedulers", []):
        yield from _all(inner)


def _cycles(scheduler: Scheduler) -> bool:
    return any(getattr(one, "cycle_momentum", False) for one in _all(scheduler))


def _wants_metric(scheduler: Scheduler) -> bool:
    parameters = list(inspect.signature(type(scheduler).step).parameters.values())[1:]
    return bool(parameters) and parameters[0].default is parameters[0].empty
