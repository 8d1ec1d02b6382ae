"""Runs in their directories: what they left, and a quick one in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoints.checkpoint import load_checkpoint

VOLATILE = ("time", "elapsed_seconds", "train/samples_per_second", "train/tokens_per_second")
VOLATILE = (
    *("time", "elapsed_seconds", "train/samples_per_second", "train/tokens_per_second"),
    *("compile/seconds", "compile/graph_breaks", "compile/recompilations"),  # of a start, each
    "system/",
)


def comparable(run: Path, after: int = 0) -> list[dict[str, Any]]:
    """Records after a step, without what the clock says."""
    return [
        {key: value for key, value in record.items() if not key.startswith(VOLATILE)}
        for record in records(run)
        if record["step"] > after
    ]


def records(run: Path) -> list[dict[str, Any]]:
    """The records of a run directory."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def series(run: Path, key: str) -> list[float]:
    """One value of every record that has it."""
    return [record[key] for record in records(run) if key in record]


def latest_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "checkpoints" / "latest")[0]


def assert_same_bits(first: Path, second: Path) -> None:
    """The latest weights of two runs are the same files, byte for byte."""
    ours, theirs = (run / "checkpoints/latest/model.safetensors" for run in (first, second))
    assert ours.read_bytes() == theirs.read_bytes()


def train_here(folder: Path, data: Path, *more: object) -> Path:
    """A quick run trained in this process; its directory is `folder`/run."""
    from launch.train import main

    arguments = [
        "--config=idx",
        f"--data.root={data}",
        f"--output_dir={folder}",
        "--name=run",
        "--parallel.device=cpu",
        "--train.global_batch_size=24",
        "--train.epochs=2",
        "--evaluate.batch_size=40",
        "--logging.progress=off",
    ]
    assert main([*arguments, *map(str, more)]) == 0
    return folder / "run"
