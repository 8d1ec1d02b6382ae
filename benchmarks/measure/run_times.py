"""What a run of Convoy says of itself in its directory, as the peers' programs say it."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

COMPILE_THRESHOLD_SECONDS = 0.1
"""A first record that comes this much later than the others' pace has waited for a compiler."""


def read_records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def read_run(run: Path, *, started_at: float) -> dict[str, Any]:
    """The keys of a peer's JSON line, from the records of a finished run.

    An epoch's training time lies between two evaluations, which do not count. What the first record
    waited longer than its steps take is compilation: it is reported apart, as the peers do. The
    first step is known to have been done by the first record, so its time is an upper bound.
    """
    records = read_records(run)
    training = [record for record in records if "train/loss" in record]
    ends = [record for record in records if "eval/loss" in record]
    elapsed = [0.0, *(record["elapsed_seconds"] for record in ends)]
    epochs = [after - before for before, after in itertools.pairwise(elapsed)]
    warmup = compile_seconds(training)
    epochs[0] -= warmup
    summary = json.loads((run / "summary.json").read_text())
    score = "accuracy" if "eval/accuracy" in summary else "token_accuracy"
    return {
        "train_seconds": [round(seconds, 4) for seconds in epochs],
        "compile_seconds": round(warmup, 4),
        "first_step_seconds": round(training[0]["time"] - started_at, 3),
        "first_step_is_upper_bound": True,
        "test_accuracy": summary[f"eval/{score}"],
        "test_loss": summary["eval/loss"],
        "train_loss": last_epoch_mean(training, "train/loss"),
        "train_accuracy": last_epoch_mean(training, f"train/{score}"),
        "epochs": len(epochs),
        "steps": summary["step"],
        "extrapolated": False,
    }


def compile_seconds(training: list[dict[str, Any]]) -> float:
    """How much longer the steps of the first record took than the median pace of later ones."""
    steps = [0, *(record["step"] for record in training)]
    elapsed = [0.0, *(record["elapsed_seconds"] for record in training)]
    paces = [
        (elapsed[i + 1] - elapsed[i]) / (steps[i + 1] - steps[i])
        for i in range(1, len(training))
        if steps[i + 1] > steps[i]
    ]
    if not paces:
        return 0.0
    excess = float(elapsed[1] - statistics.median(paces) * steps[1])
    return excess if excess > COMPILE_THRESHOLD_SECONDS else 0.0


def last_epoch_mean(training: list[dict[str, Any]], key: str) -> float:
    """Mean of a value over the steps of the last epoch; a record is the mean of its own steps."""
    steps = [0, *(record["step"] for record in training)]
    weights = [after - before for before, after in itertools.pairwise(steps)]
    last = training[-1]["epoch"] - 1
    chosen = [
        (record[key], weight)
        for record, weight in zip(training, weights, strict=True)
        if record["epoch"] > last
    ]
    total = math.fsum(value * weight for value, weight in chosen)
    return float(total / max(sum(weight for _, weight in chosen), 1))


def seconds_per_step(run: Path, *, warmup_steps: int) -> float:
    """Training time of one step between the first record after the warm-up and the last."""
    training = [
        record
        for record in read_records(run)
        if "train/loss" in record and record["step"] >= warmup_steps
    ]
    first, last = training[0], training[-1]
    seconds = last["elapsed_seconds"] - first["elapsed_seconds"]
    return float(seconds / (last["step"] - first["step"]))
