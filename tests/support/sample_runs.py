"""Runs to compare that nobody trained: directories as a run leaves them, and offline W&B runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

Row = dict[str, Any]


def rows(
    count: int = 5, *, accuracy: float = 0.9, every: int = 10, first_step: int = 0
) -> list[Row]:
    """A training record each step, and an evaluation at the last one."""
    steps = [first_step + every * index for index in range(1, count + 1)]
    training = [
        {
            "step": step,
            "epoch": step / 100,
            "time": 1000.0 + step,
            "elapsed_seconds": step / 10,
            "train/loss": 1 / step,
            "train/accuracy": 0.5,
            "train/lr": 0.001,
            "train/grad_norm": 2.0,
            "train/samples_per_second": 500.0,
        }
        for step in steps
    ]
    axes = {key: training[-1][key] for key in ("step", "epoch", "time", "elapsed_seconds")}
    return [*training, axes | {"eval/loss": 1 - accuracy, "eval/accuracy": accuracy}]


def write_run(
    folder: Path,
    records: list[Row] | None = None,
    *,
    config: Row | None = None,
    status: str = "completed",
    **environment: Any,
) -> Path:
    """A run directory; `config` is nested, as in config.yaml."""
    folder.mkdir(parents=True)
    known = {"name": folder.name, "seed": 0, "optimizer": {"lr": 0.001}}
    (folder / "config.yaml").write_text(yaml.safe_dump(known | (config or {})))
    facts = {
        "git_commit": "0123456789abcdef",
        "git_dirty": False,
        "world_size": 2,
        "device": "cuda",
        "gpus": ["NVIDIA H100", "NVIDIA H100"],
    }
    (folder / "environment.json").write_text(json.dumps(facts | environment))
    (folder / "summary.json").write_text(json.dumps({"status": status}))
    lines = [json.dumps(record) + "\n" for record in (rows() if records is None else records)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def write_offline(
    folder: Path,
    records: list[Row],
    *,
    run_id: str | None = None,
    **given: Any,
) -> Path:
    """A run that the real wandb writes in offline mode; returns its directory."""
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(console="off")
    run = wandb.init(
        mode="offline", dir=str(folder), project="tests", id=run_id, settings=settings, **given
    )
    for record in records:
        run.log(record)
    directory = Path(run.dir).parent
    run.finish()
    wandb.teardown()  # the service process writes the last of it when it ends
    return directory
