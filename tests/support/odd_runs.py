"""Quick runs of the odd networks, in this process."""

from __future__ import annotations

from pathlib import Path

from configs.load import load_config
from trainer.ranks.stop_signals import StopRequest

ODD = "tests.support.odd_networks"
CHANGING = "tests.support.changing_networks"


def arguments(folder: Path, model: str, *more: object) -> list[str]:
    return [
        f"--data.dataset={ODD}:toy",
        f"--model.name={model if ':' in model else f'{ODD}:{model}'}",
        "--model.kwargs={}",
        "--name=run",
        f"--output_dir={folder}",
        "--parallel.device=cpu",
        "--train.global_batch_size=64",
        "--train.epochs=3",
        "--optimizer.name=adamw",
        "--optimizer.lr=0.01",
        "--logging.every_steps=1",
        "--logging.progress=off",
        *map(str, more),
    ]


def run(folder: Path, model: str, *more: object) -> Path:
    """Train it in this process."""
    from launch.train import train

    config = load_config(arguments(folder, model, *more), prog="", description="")
    assert train(config, StopRequest()) == 0
    return folder / config.name
