"""Run directories as earlier processes left them."""

from __future__ import annotations

from pathlib import Path

import torch

from configs.identity import digest, identity
from configs.schema import RunConfig
from trainer.checkpoints.checkpoint import Position
from trainer.checkpoints.checkpoint_folder import save_checkpoint
from trainer.checkpoints.run_directory import Resume, RunDirectory


def save(config: RunConfig, step: int) -> Path:
    return save_checkpoint(
        RunDirectory(config).checkpoints,
        {"weight": torch.full((2,), float(step))},
        {"progress": {"step": step}},
        Position(
            step=step,
            epoch=0,
            position=step,
            world_size=1,
            config_digest=digest(config),
            identity=identity(config),
        ),
        keep=9,
        is_best=False,
    )


def earlier_run(config: RunConfig, status: str, *, steps: tuple[int, ...] = (10, 20)) -> list[Path]:
    """A run directory as an earlier process left it."""
    directory = RunDirectory(config)
    directory.open(config, Resume(None, 0, []))
    paths = [save(config, step) for step in steps]
    directory.write_summary({"status": status})
    directory.release()
    return paths
