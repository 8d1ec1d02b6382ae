"""What a short training of a copy shows: gradients, updates, activations, number formats."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from launch.diagnosis.check_learning import check_learning_rate, check_overfit
from launch.diagnosis.findings import Check, Finding, Level, name_some
from launch.diagnosis.subject import Subject
from launch.diagnosis.trial import Trial, run_trial

VANISHING = 1e-3, 1e-4
"""Gradient of a layer over the largest of all layers: warning, problem."""
EXPLODING = 1e2, 1e4
"""Norm of the whole gradient: warning, problem."""
TINY = 1e-7
UPDATE = 1e-5, 1e-1
"""Healthy range of the update of a weight over the weight itself, per step."""
DEAD = 0.4, 0.75
"""Fraction of the units of a rectifier that are never active: warning, problem."""
SATURATED = 0.5, 0.8
"""Fraction of the outputs of an activation at the end of its range: warning, problem."""


def check_training(subject: Subject, trial: Trial) -> list[Finding]:
    """Judge a watched trial at the config's learning rate, and a few more trials."""
    if trial.diverged:
        fp32 = subject.config.precision.dtype != "fp32" and _precision_is_to_blame(subject, trial)
        return [fp32] if fp32 else [check_learning_rate(subject, trial)]
    return [
        check_gradients(subject, trial),
        check_reached(trial),
        check_updates(subject, trial),
        check_dead(trial),
        check_saturation(trial),
        check_scaling(trial),
        check_learning_rate(subject, trial),
        check_overfit(subject),
    ]


def layer_table(trial: Trial) -> list[dict[str, Any]]:
    """Median gradient norm and update ratio of each weight over the second half."""
    return [
        {
            "weight": name,
            "gradient": _late(layer.gradient),
            "update / weight": _late(layer.update),
        }
        for name, layer in trial.layers.items()
    ]


def _late(values: Sequence[float]) -> float:
    return statistics.median(values[len(values) // 2 :]) if values else 0.0


def check_gradients(subject: Subject, trial: Trial) -> Finding:
    """Norms of the layers against each other, and of the whole."""
    norms = {name: statistics.median(layer.gradient) for name, layer in trial.layers.items()}
    largest = max(norms.values(), default=0.0)
    total = statistics.median(trial.total_gradient)
    table = layer_table(trial)
    seen = f"norm of the whole gradient {total:.3g}"
    # A loss of the user's own may be in any unit.
    unit = 1.0 if subject.knows_loss else max(abs(trial.losses[0]), 1.0)
    if total > EXPLODING[0] * unit:
        clipped = subject.config.train.clip_norm is not None
        return Check("training", "gradients").judge(
            "problem" if total > EXPLODING[1] * unit and not clipped else "warning",
            f"{seen}: exploding",
            "Steps are as large as the gradient is; a few of them throw the weights away.",
            "--train.clip_norm 1.0, normalised inputs, normalisation layers or smaller initial "
            "weights",
            table=table,
        )
    least = VANISHING[0] * largest
    reached = min((trial.depths[name] for name, norm in norms.items() if norm >= least), default=0)
    # Beside or behind a layer that gets its gradient it is no matter of depth: the queries and keys
    # of an attention get little until it attends to something.
    small = {n: norm for n, norm in norms.items() if 0 < norm < least and trial.depths[n] < reached}
    if small or (0 < largest < TINY and not trial.learned):  # then they may well be small
        name = min(small or norms, key=norms.__getitem__)
        ratio = norms[name] / largest
        return Check("training", "gradients").judge(
            "problem" if ratio < VANISHING[1] or largest < TINY else "warning",
            f"{seen}; {name} gets {norms[name]:.2g}, {ratio:.1g} of the largest of a layer: "
            "vanishing",
            "Early layers learn next to nothing.",
            "ReLU or GELU instead of sigmoid or tanh, normalisation layers, residual connections, "
            "or initial weights that fit the activation (nn.init.kaiming_normal_)",
            table=table,
        )
    return Check("training", "gradients").ok(seen, table=table)


def check_reached(trial: Trial) -> Finding:
    """Trainable parameters that the loss does not reach."""
    zero = [name for name, layer in trial.layers.items() if not any(layer.gradient)]
    lost = sorted(trial.missing)
    if not lost and not zero:
        return Check("training", "reached").ok("the loss reaches every trainable parameter")
    return Check("training", "reached").problem(
        f"no gradient for {name_some([*lost, *zero])}",
        "They are never trained; with several ranks DDP waits for their gradients and raises.",
        "use them in forward, remove detach(), .data or no_grad() on the way, or freeze them with "
        "requires_grad_(False)",
    )


def check_updates(subject: Subject, trial: Trial) -> Finding:
    """How far a step moves each weight: about 1e-3 of the weight is usual."""
    ratios = {name: _late(layer.update) for name, layer in trial.layers.items() if layer.update}
    ratios = {name: r for name, r in ratios.items() if any(trial.layers[name].gradient)}
    if not ratios:
        return Check("training", "updates").note("no weight was updated")
    usual = statistics.median(ratios.values())
    seen = f"a step moves the weights by {usual:.1g} of their size (median over layers)"
    low, high = UPDATE
    wild = [name for name, ratio in ratios.items() if ratio > high]
    moving = {trial.depths[name] for name, ratio in ratios.items() if ratio >= low}
    idle = [
        name
        for name, ratio in ratios.items()
        if ratio < low and not trial.learned and trial.depths[name] not in moving
    ]
    if wild and usual > high / 3:
        return Check("training", "updates").warning(
            f"{seen}; above {high:g}: {name_some(wild)}",
            "Such steps overwrite what was learned; about 1e-3 is usual.",
            f"a lower --optimizer.lr (now {subject.config.optimizer.lr:g}), or a warm-up",
        )
    if len(idle) == len(ratios):
        return Check("training", "updates").warning(
            f"{seen}; below {low:g} in all layers",
            "The weights hardly move; about 1e-3 is usual.",
            f"a higher --optimizer.lr (now {subject.config.optimizer.lr:g})",
        )
    if idle:
        return Check("training", "updates").warning(
            f"{seen}; below {low:g}: {name_some(idle)}",
            "These layers hardly learn; about 1e-3 is usual.",
            "look at their gradients above; adam or adamw scale steps per weight",
        )
    return Check("training", "updates").ok(seen)


def check_dead(trial: Trial) -> Finding:
    """Rectifier units that were never above 0 in the second half of the trial."""
    return _judge_activations(
        Check("training", "dead_units"),
        {n: a.dead_fraction for n, a in trial.activity.found.items() if a.kind == "relu"},
        DEAD,
        "units of a rectifier that are never active",
        "A rectifier that is never above 0 passes no gradient: its unit cannot come back.",
        "a lower --optimizer.lr, biases that start at 0, normalised inputs, batch norm, or "
        "leaky ReLU",
    )


def check_saturation(trial: Trial) -> Finding:
    """Sigmoids and tanhs at the ends of their range."""
    return _judge_activations(
        Check("training", "saturation"),
        {n: a.saturated_fraction for n, a in trial.activity.found.items() if a.kind != "relu"},
        SATURATED,
        "outputs of a sigmoid or tanh at the end of its range",
        "There the slope is almost 0, and so is the gradient that goes back through it.",
        "smaller initial weights (nn.init.xavier_uniform_), normalised inputs, or a normalisation "
        "layer before the activation",
    )


def _judge_activations(
    check: Check,
    parts: dict[str, float],
    limits: tuple[float, float],
    what: str,
    why: str,
    change: str,
) -> Finding:
    """Judge the part of the outputs of each activation that is lost.

    Args:
        check: What is looked at.
        parts: Fractions by the name of the activation.
        limits: Fractions above which it is a warning, and a problem.
        what: What is lost.
        why: Why it matters.
        change: What to change.
    """
    if not parts:
        return check.ok("no such activation in the model")
    name = max(parts, key=parts.__getitem__)
    if parts[name] <= limits[0]:
        return check.ok(f"{what}: at most {parts[name]:.0%} ({name})")
    bad = [f"{layer} {part:.0%}" for layer, part in parts.items() if part > limits[0]]
    level: Level = "problem" if parts[name] > limits[1] else "warning"
    return check.judge(level, f"{what}: {name_some(bad)}", why, change)


def check_scaling(trial: Trial) -> Finding:
    """fp16 steps that were skipped because their gradients overflowed."""
    steps = len(trial.losses)
    seen = f"{trial.skipped} of {steps} steps skipped for overflowing gradients"
    if trial.skipped <= max(0.4 * steps, 16):  # the scale starts high and is halved each time
        return Check("training", "loss_scale").ok(seen)
    return Check("training", "loss_scale").problem(
        seen,
        "The gradients do not fit fp16's range even after scaling: nothing is learned.",
        "--precision.dtype bf16 or fp32, or a lower --precision.init_scale",
    )


def _precision_is_to_blame(subject: Subject, trial: Trial) -> Finding | None:
    lr = subject.config.optimizer.lr
    if run_trial(subject, lr=lr, steps=max(len(trial.losses), 10), fp32=True).diverged:
        return None
    dtype = subject.config.precision.dtype
    return Check("training", "precision").problem(
        f"the loss is not finite after {len(trial.losses)} steps in {dtype}, but is in fp32",
        f"Something in the model leaves the range of {dtype} (fp16 ends at 65504).",
        "--precision.dtype bf16 or fp32; compute sums, norms and exponentials in float32",
    )
