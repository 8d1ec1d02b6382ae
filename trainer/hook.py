"""`logging.hook`: a function of the user's that looks at a run, and cannot change it."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from configs.imports import import_callable
from configs.schema_records import LoggingConfig
from data.normalize import Normalize
from trainer.checkpoints.state import RunState
from trainer.networks.module_state import contiguous, evaluating, untouched
from trainer.ranks.drift import weight_digest
from trainer.ranks.failures import RunFailed
from trainer.ranks.rng import capture_rng, restore_rng
from trainer.records.sinks import Note, Record, Sinks
from trainer.records.stopwatch import Stopwatch

logger = logging.getLogger("convoy")
After = Literal["training", "evaluation"]
PROTOCOL = "a function of one argument, a `Moment` (trainer/hook.py)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Where a run stands, for a hook."""

    after: After
    """What was recorded just now."""
    step: int
    epoch: float
    metrics: Mapping[str, float]
    """Of that record, such as `train/loss` or `eval/accuracy`."""
    model: nn.Module
    """What is evaluated, in eval mode: the average of the weights if there is one."""
    normalize: Normalize
    """Turns inputs as the data set holds them into what the model takes."""
    device: torch.device
    is_main: bool
    """Whether this is rank 0, which alone has records; others call the hook under FSDP only."""
    sinks: Sinks

    def text(self, name: str, content: str) -> None:
        """Show a text: RUN/notes/NAME/step_NNNNNNNN.txt, TensorBoard and W&B if they are on."""
        self.sinks.note(Note(step=self.step, name=name, text=content))

    def picture(self, name: str, pixels: Tensor) -> None:
        """Show a picture likewise, as PNG.

        Args:
            name: Of the picture; the step is added.
            pixels: `(H, W)` or `(C, H, W)`, C of 1, 3 or 4: uint8, or floats from 0 to 1.
        """
        self.sinks.note(Note.of_pixels(self.step, name, pixels))

    def histogram(self, name: str, values: Tensor) -> None:
        """Show how numbers of any shape are distributed likewise, as counts and edges in JSON."""
        self.sinks.note(Note.of_values(self.step, name, values))


def find_hook(config: LoggingConfig) -> Callable[[Moment], object] | None:
    """The function that `logging.hook` names.

    Raises:
        InputError: If it names none.
    """
    if config.hook is None:
        return None
    return import_callable("logging.hook", config.hook, PROTOCOL, takes=1)


class Hook:
    """Calls the user's function at moments of a run, between two steps.

    Random generators, modes, buffers and plain attributes of the model are afterwards what they
    were, nothing is recorded for autograd, and other weights are refused. Rank 0 calls it, and
    under FSDP, where a forward pass takes all ranks, every rank does.
    """

    def __init__(
        self,
        config: LoggingConfig,
        *,
        state: RunState,
        normalize: Normalize,
        sinks: Sinks,
        watch: Stopwatch,
        sharded: bool,
    ) -> None:
        self.function = find_hook(config)
        self.wanted = self.function is not None
        self.path = config.hook
        self.state = state
        self.normalize = normalize
        self.sinks = sinks
        self.watch = watch
        self.sharded = sharded

    def __call__(self, after: After, record: Record) -> None:
        """Call it, if there is one.

        Raises:
            RunFailed: If it has changed weights.
        """
        state, runtime = self.state, self.state.runtime
        if self.function is None or not (runtime.is_main or self.sharded):
            return
        if after == "training":
            self.watch.stop(0)
        average = state.average
        modules = [state.engine.module] + ([average.module] if average else [])
        moment = Moment(
            after=after,
            step=int(record["step"]),
            epoch=record["epoch"],
            metrics=dict(record),
            model=modules[-1],
            normalize=self.normalize,
            device=runtime.device,
            is_main=runtime.is_main,
            sinks=self.sinks,
        )
        rng = capture_rng(runtime.device)
        before = [weight_digest(module).tolist() for module in modules]
        try:
            with torch.no_grad(), ExitStack() as stack:
                for module in modules:
                    stack.enter_context(untouched(module))
                stack.enter_context(evaluating(moment.model))
                stack.enter_context(contiguous(moment.model))
                self.function(moment)
        except Exception:
            if self.sharded:  # the others wait in a pass
                raise
            lines = traceback.format_exc()
            logger.warning(f"logging.hook {self.path} failed; training goes on without it\n{lines}")
            self.function = None
        finally:
            restore_rng(rng, runtime.device)
        if [weight_digest(module).tolist() for module in modules] != before:
            raise RunFailed(
                f"logging.hook {self.path} has changed the weights, after step {moment.step}. A "
                "hook looks at a run: let it work on a copy (copy.deepcopy(moment.model))"
            )
        if after == "training":
            self.watch.start()
