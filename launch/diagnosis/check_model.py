"""Is the model put together soundly: what it returns, what it trains, what it leaves out."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from configs.errors import InputError, failing_line, one_line
from data.structures import fields_of, is_record, map_tensors
from launch.diagnosis.activity import ActivityWatch
from launch.diagnosis.check_eval_mode import check_eval_mode
from launch.diagnosis.findings import Check, Finding, name_some
from launch.diagnosis.subject import Subject, flatten, logits_of_batches, mean_loss
from trainer.networks.calling import Call
from trainer.networks.models import build_model
from trainer.objective.check_outputs import check_outputs as refuse_misfits
from trainer.objective.check_outputs import outputs_of
from trainer.ranks.drift import weight_digest

TOLERANCE = 1e-3
BOUNDED = (
    "Cross-entropy applies log-softmax itself. With outputs held within a range the loss cannot "
    "come near 0, and gradients are small."
)
WHY = "The first step of the run would fail the same way."
DEVICES = re.compile(r"same device|found at least two devices")


def check_model(subject: Subject) -> list[Finding]:
    """Look at the model as it is before training.

    A model that cannot take a step gives one problem; then there is nothing else to look at.
    """
    failure = try_one_step(subject)
    if failure is not None:
        return [failure]
    initial = check_initial_loss(subject)
    found = [check_registered(subject), check_frozen(subject), check_same_weights(subject)]
    if "nan" in initial.seen or "inf" in initial.seen:
        return [*found, initial]  # outputs that are not finite cannot be compared
    return [
        *found,
        initial,
        *([check_outputs(subject)] if subject.tells_classes else []),
        *check_eval_mode(subject),
    ]


def try_one_step(subject: Subject) -> Finding | None:
    """Forward and backward on the first batch; a problem if the model raises or fits no targets."""
    model, batch = subject.copy(), next(flatten(subject.batches))
    first = subject.example.batch().to(subject.device)
    try:
        with torch.no_grad():
            inputs = subject.normalize(first.inputs)
            outputs_of(subject.copy().eval(), subject.call, inputs, first.targets)
        outputs = subject.outputs(model, batch)
        if subject.tells_classes and (wrong := _wrong_logits(subject, outputs, batch.size)):
            return wrong
        loss, *_ = subject.task.learn(outputs, batch.targets, batch.size)
        loss.backward()  # type: ignore[no-untyped-call]
        refuse_misfits(model, subject.call, subject.normalize, first, subject.task)
    except InputError as error:
        return Check("training", "forward").problem(str(error), WHY, "see what is expected above")
    except Exception as error:
        return _raised(error)
    return None


def _wrong_logits(subject: Subject, outputs: Any, size: int) -> Finding | None:
    """A problem if outputs are no logits of all classes, or have none among them."""
    classes = subject.data.num_classes
    logits = fields_of(outputs).get("logits") if is_record(outputs) else outputs
    found = tuple(logits.shape) if isinstance(logits, Tensor) else ()
    right = len(found) == 2 and found[0] == size and found[1] >= classes
    return None if right else _wrong_shape(outputs, size, classes)


def _wrong_shape(output: Any, size: int, classes: int) -> Finding:
    given = str(tuple(output.shape)) if isinstance(output, Tensor) else type(output).__name__
    return Check("training", "forward").problem(
        f"the model returns {given}, expected logits ({size}, {classes})",
        "Cross-entropy needs one row of logits per sample and one column per class.",
        "give the last layer num_classes outputs, and return the logits alone",
    )


def _raised(error: Exception) -> Finding:
    reason = one_line(error)
    seen = f"{type(error).__name__} at {failing_line(error) or 'no line'}: {reason}"
    if DEVICES.search(reason):
        return Check("training", "device").problem(seen, WHY, REGISTER)
    return Check("training", "forward").problem(seen, WHY, "repair the model at that line")


REGISTER = (
    "make tensors that belong to the model parameters or buffers (register_buffer), and modules "
    "in lists an nn.ModuleList; create others on `inputs.device`"
)


def check_registered(subject: Subject) -> Finding:
    """Tensors and modules that `.to(device)`, the optimizer and checkpoints do not see."""
    model = subject.model
    known = {id(item) for item in (*model.parameters(), *model.buffers(), *model.modules())}
    learned, plain = [], []
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            for thing in _inside(value):
                if id(thing) in known:
                    continue
                full = f"{path}.{name}".lstrip(".")
                if isinstance(thing, nn.Parameter) or (
                    isinstance(thing, nn.Module) and any(True for _ in thing.parameters())
                ):
                    learned.append(full)
                elif isinstance(thing, Tensor):
                    plain.append(full)
    if learned:
        return Check("training", "registered").problem(
            f"layers or parameters in plain lists or dicts: {name_some([*dict.fromkeys(learned)])}",
            "The optimizer does not train them, checkpoints do not hold them, .to() leaves them.",
            "use nn.ModuleList, nn.ModuleDict, nn.ParameterList or plain attributes",
        )
    if plain or (mismatch := _moves_badly(subject)):
        what = name_some([*dict.fromkeys(plain)]) if plain else mismatch
        return Check("training", "registered").warning(
            f"tensors that do not move with the model: {what}",
            "On another device the forward pass fails (`Expected all tensors to be on the same "
            "device`), and checkpoints do not hold them.",
            REGISTER,
        )
    return Check("training", "registered").ok("all tensors move with the model")


def _inside(value: Any, depth: int = 2) -> Iterable[Any]:
    """Tensors and modules in a value, and in lists, tuples and dicts of it."""
    if isinstance(value, Tensor | nn.Module):
        yield value
    elif depth and isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _inside(item, depth - 1)


def _moves_badly(subject: Subject) -> str:
    """Run the model as if on a GPU, with tensors that have shapes only: who stayed behind?"""
    from torch._subclasses.fake_tensor import FakeTensorMode

    batch = subject.example.batch(2).to(subject.device)
    inputs = subject.normalize(batch.inputs)
    model = _Called(subject.copy().eval(), subject.call)
    named = dict((*model.named_parameters(), *model.named_buffers()))
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a torch that has no kernels for GPUs
            moved = {name: torch.empty_like(t, device="cuda") for name, t in named.items()}
            given = map_tensors(
                lambda held: torch.empty_like(held, device="cuda"), (inputs, batch.targets)
            )
            torch.func.functional_call(model, moved, given)
    except Exception as error:  # most of what such tensors cannot do says nothing here
        reason = one_line(error)
        where = failing_line(error) or "no line"
        return f"{where}: {reason[:160]}" if DEVICES.search(reason) else ""
    return ""


class _Called(nn.Module):
    """A model that is called with inputs and targets, however it takes them."""

    def __init__(self, module: nn.Module, call: Call) -> None:
        super().__init__()
        self.module = module
        self.call = call

    def forward(self, inputs: Any, targets: Any) -> Any:
        return self.call(self.module, inputs, targets)


def check_frozen(subject: Subject) -> Finding:
    """Parameters with requires_grad=False."""
    model = subject.model
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    total = sum(p.numel() for p in model.parameters())
    held = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    if not frozen:
        return Check("training", "frozen").ok(f"all {total:,} weights are trainable")
    seen = f"{held:,} of {total:,} weights have requires_grad=False: {name_some(frozen)}"
    if subject.config.model.freeze:
        return Check("training", "frozen").note(f"{seen}, of model.freeze or the model's own")
    return Check("training", "frozen").warning(
        seen,
        "They keep their initial values.",
        "requires_grad_(True), unless they are meant to stay (fine-tuning)",
    )


def check_outputs(subject: Subject) -> Finding:
    """Outputs must be free logits: a softmax, sigmoid or ReLU at the end holds the loss up."""
    model, watch = subject.copy(), ActivityWatch()
    logits = logits_of_batches(subject, model, 512)
    first = subject.example.batch(2).to(subject.device)
    with watch.watching(model), torch.no_grad():
        last = watch.kind_of(subject.task.align(subject.outputs(model, first), first.targets))
    low, high = float(logits.min()), float(logits.max())
    sums, log_sums = logits.sum(1), logits.logsumexp(1)
    seen = f"outputs from {low:.3g} to {high:.3g}"
    if low >= 0 and float((sums - 1).abs().max()) < TOLERANCE * 10:
        seen = f"{seen}, every row sums to 1: a softmax before cross-entropy"
        return Check("training", "outputs").problem(seen, BOUNDED, "remove the softmax")
    if high <= TOLERANCE and float(log_sums.abs().max()) < TOLERANCE * 10:
        return Check("training", "outputs").warning(
            f"{seen}, exponentials of every row sum to 1: a log-softmax before cross-entropy",
            "Cross-entropy applies log-softmax itself: another one changes nothing but costs time.",
            "remove the log-softmax",
        )
    zeros = float((logits == 0).float().mean())
    if last == "relu" or (low >= 0 and high > 0 and zeros > 0.05):
        return Check("training", "outputs").problem(
            f"{seen}, {zeros:.0%} of them exactly 0: a ReLU before cross-entropy",
            "A logit below 0 has no gradient, and a class whose logit is always 0 cannot recover.",
            "remove the activation after the last layer",
        )
    if last is not None or (low >= 0 and high <= 1 and logits.numel() >= 64 and high > low):
        seen = f"{seen}: a {last or 'sigmoid'} before cross-entropy"
        return Check("training", "outputs").problem(
            seen, BOUNDED, f"remove the {last or 'sigmoid'}"
        )
    if logits.shape[1] > subject.data.num_classes:
        seen = f"{logits.shape[1]} logits for {subject.data.num_classes} classes"
        return Check("training", "outputs").note(seen)
    return Check("training", "outputs").ok(f"{seen}, not normalised")


def check_initial_loss(subject: Subject) -> Finding:
    """Before training every class is as likely as the others: a loss of ln(classes). Of other
    losses nothing is known but that they are finite."""
    expected, loss = subject.chance, mean_loss(subject)
    seen = f"loss at initialisation {loss:.3g}"
    if expected is not None:
        seen = f"{seen}, ln({subject.data.num_classes}) = {expected:.3g}"
    if not math.isfinite(loss):
        return Check("training", "initial_loss").problem(
            seen,
            "A loss that is not finite makes all weights NaN in the first step.",
            "look for a division by zero, log(0) or overflow in the model; try --precision.dtype "
            "bf16 or fp32",
        )
    if expected is None:
        return Check("training", "initial_loss").ok(seen)
    if loss > 3 * expected + 1:
        return Check("training", "initial_loss").judge(
            "problem" if loss > 30 * expected else "warning",
            seen,
            "The model is confident and wrong before it has learned anything: the first steps go "
            "into undoing that, and gradients are large.",
            "smaller initial weights in the last layer, or normalised inputs",
        )
    if loss > 1.5 * expected + 0.5:
        return Check("training", "initial_loss").note(seen)
    if loss < 0.5 * expected:
        return Check("training", "initial_loss").note(f"{seen}: it knows something already")
    return Check("training", "initial_loss").ok(seen)


def check_same_weights(subject: Subject) -> Finding:
    """The seed alone decides the initial weights, or ranks and restarts begin differently."""

    def digest() -> list[int]:
        model = build_model(
            subject.config.model,
            input_shape=subject.data.input_shape,
            num_classes=subject.data.num_classes,
            seed=subject.config.seed,
        )
        return [int(value) for value in weight_digest(model).tolist()]

    if digest() == digest():
        return Check("training", "same_weights").ok("the seed decides the initial weights")
    return Check("training", "same_weights").problem(
        "two models built with the same seed have different weights",
        "Ranks start from different weights, and no run can be repeated.",
        "draw initial weights from torch's, numpy's or python's global generator only",
    )
