"""Records of a run that nobody trained, and the facts with which a sink is started."""

from __future__ import annotations

from pathlib import Path

from trainer.objective.selection import Selection
from trainer.records.sinks import Record, RunFacts

CONFIG = {"optimizer.lr": 0.25, "model.kwargs": {"hidden": [4]}, "seed": 3}


def facts(folder: Path, *, first_step: int = 0) -> RunFacts:
    return RunFacts(
        directory=folder,
        config=CONFIG,
        environment={"git_commit": "abc", "world_size": 2},
        total_steps=100,
        total_epochs=10.0,
        samples_per_epoch=500,
        score_name="accuracy",
        selection=Selection("accuracy", higher=True),
        first_step=first_step,
    )


def training(step: int) -> Record:
    return {
        "step": step,
        "epoch": step / 10,
        "time": 1000.0 + step,
        "train/loss": 1 / step,
        "train/accuracy": 0.5,
        "train/lr": 0.001,
        "train/grad_norm": 2.0,
        "train/samples_per_second": 500.0,
    }


def evaluation(step: int) -> Record:
    return {
        "step": step,
        "epoch": step / 10,
        "time": 1000.0 + step,
        "eval/loss": 0.25,
        "eval/accuracy": 0.9312,
    }
