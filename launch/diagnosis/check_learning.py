"""Can it learn: the learning rate against others, and one batch learned by heart."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import nn

from data.samples import Batch
from data.structures import tensors
from launch.diagnosis.findings import Check, Finding
from launch.diagnosis.subject import Subject, mean_loss
from launch.diagnosis.trial import Trial, run_trial

STUCK = 0.05
"""Part of the initial loss that counts as no progress."""
PROGRESS = 0.12
"""Part of the initial loss that counts as clear progress."""
LADDER = (100.0, 1e3, 1e4, 1e5, 1e6)
DIVERGED_STEPS = 50
OF_CLASSES, OF_NUMBERS = (0.05, 0.4), (0.3, 0.8)
"""What may be left of the loss of guessing, or of the initial one: warning, problem."""
OVERFIT_SAMPLES = 32
OVERFIT_STEPS = 100
OVERFIT_RATES = (1e-3, 1e-2, 1e-4)


@dataclass(slots=True)
class _Rates:
    """The final losses of trials at multiples of the config's learning rate."""

    subject: Subject
    start: float
    steps: int
    final: dict[float, float] = field(default_factory=dict)

    def gain(self, factor: float) -> float:
        """Part of the initial loss that is gone at this multiple; negative if it grew.

        All of it if there was none, as with a single class.
        """
        if factor not in self.final:
            lr = self.subject.config.optimizer.lr * factor
            self.final[factor] = run_trial(self.subject, lr=lr, steps=self.steps).final_loss
        return (self.start - self.final[factor]) / abs(self.start) if self.start else 1.0

    @property
    def best(self) -> float:
        return min(self.final, key=self.final.__getitem__)

    def look_further(self, *, upwards: bool) -> None:
        """Try rates further and further away, until one makes clear progress."""
        for factor in LADDER:
            for far in (factor, 1 / factor) if upwards else (1 / factor,):
                if (
                    1e-7 <= self.subject.config.optimizer.lr * far <= 1
                    and self.gain(far) > PROGRESS
                ):
                    return


def check_learning_rate(subject: Subject, trial: Trial) -> Finding:
    """Compare lr with a tenth and ten times of it; if lr gets nowhere, look further."""
    steps = DIVERGED_STEPS if trial.diverged else len(trial.losses)
    lr, first = subject.config.optimizer.lr, trial.losses[0]
    start = first if math.isfinite(first) else mean_loss(subject)
    rates = _Rates(subject, start, steps, {1.0: trial.final_loss})
    if rates.gain(1.0) < STUCK and max(rates.gain(0.1), rates.gain(10.0)) < PROGRESS:
        rates.look_further(upwards=not trial.diverged)
    lower, best = rates.gain(0.1), rates.best
    rates.gain(10.0)
    table = [{"lr": lr * f, "loss after": loss} for f, loss in sorted(rates.final.items())]
    seen = f"loss {start:.3g} -> {rates.final[1.0]:.3g} in {steps} steps at lr {lr:g}"
    far_off = best < 1 or best > 10 or rates.gain(1.0) < STUCK / 5
    if rates.gain(best) > PROGRESS and rates.gain(1.0) < STUCK and far_off:
        return Check("training", "learning_rate").judge(
            "warning" if best == 10 else "problem",
            f"{seen}: too {'high' if best < 1 else 'low'}",
            f"At lr {lr * best:g} it reaches {rates.final[best]:.3g} in the same steps.",
            f"--optimizer.lr {lr * best:g}",
            table=table,
        )
    if trial.diverged:
        return Check("training", "learning_rate").problem(
            f"{seen}, and no better at lower rates",
            "The loss leaves the finite numbers.",
            "normalise the inputs, set --train.clip_norm 1.0, and look at the other findings",
            table=table,
        )
    if lower > max(2 * rates.gain(1.0), PROGRESS):
        return Check("training", "learning_rate").warning(
            f"{seen}, but {rates.final[0.1]:.3g} at a tenth of it: too high",
            "Large steps jump over what smaller ones find.",
            f"--optimizer.lr {lr * 0.1:g}, or a warm-up (--schedule.warmup_steps)",
            table=table,
        )
    if rates.gain(best) < STUCK:
        seen = f"{seen}, and no better at other rates: nothing to compare"
        return Check("training", "learning_rate").note(seen, table=table)
    return Check("training", "learning_rate").ok(seen, table=table)


def check_overfit(subject: Subject) -> Finding:
    """A model that can learn at all learns one small batch by heart, without dropout.

    How low a loss of the user's own can be is not known: it has to fall.
    """
    batch = subject.batch_of(subject.samples(OVERFIT_SAMPLES))
    first, _ = _memorise(subject, batch, 0.0, -math.inf, steps=1)
    known, start, (low, high) = subject.knows_loss, first, OF_NUMBERS
    if subject.chance is not None:
        start, (low, high) = subject.chance, OF_CLASSES
    target = low * start if known else first - STUCK * abs(first)
    best, bound = math.inf, 0.0
    for lr in OVERFIT_RATES:
        loss, largest = _memorise(subject, batch, lr, target)
        best, bound = min(best, loss), max(bound, largest)
        if best < target:
            what = "learned by heart: loss" if known else f"are learned from: loss {first:.2g} ->"
            seen = f"{batch.size} samples {what} {best:.2g} with Adam at {lr:g}"
            return Check("training", "overfit_one_batch").ok(seen)
    seen = f"loss {best:.2g} on {batch.size} samples after {OVERFIT_STEPS} steps of Adam"
    if not known:
        return Check("training", "overfit_one_batch").note(f"{seen}, {first:.2g} before")
    if subject.tells_classes and 0.9 < bound <= 1.001:
        seen += "; the outputs stay within -1 to 1: a bounded activation at the end"
    return Check("training", "overfit_one_batch").judge(
        "problem" if best > high * start else "warning",
        f"{seen}, with dropout off",
        "A model that cannot learn one batch by heart has a fault, or far too few weights.",
        "look at the other findings; remove activations after the last layer; check that inputs "
        "reach the output and differ between samples",
    )


def _memorise(
    subject: Subject, batch: Batch, lr: float, target: float, steps: int = OVERFIT_STEPS
) -> tuple[float, float]:
    """Train on one batch until the loss is below `target`: the loss, and the largest output."""
    model = subject.copy().eval()  # dropout rests; batch norm takes the statistics of the batch
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=lr)
    loss, largest = math.inf, 0.0
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        outputs = subject.outputs(model, batch)
        total, weight = subject.loss(outputs, batch)
        value = total / weight.clamp(min=1e-12)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss = float(value.detach())
        largest = float(next(tensors(outputs)).detach().abs().max())
        if loss < target:
            break
    return (loss if math.isfinite(loss) else math.inf), largest
