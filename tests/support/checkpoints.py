"""Small checkpoints for tests."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from torch import Tensor

from trainer.checkpoints.checkpoint import Position
from trainer.checkpoints.checkpoint_folder import save_checkpoint

FILES = ("model.safetensors", "trainer.pt", "manifest.json")


def weights(value: float = 0.0) -> dict[str, Tensor]:
    return {"layer.weight": torch.full((3, 2), value), "layer.bias": torch.arange(3.0)}


def position(step: int, score: float | None = None) -> Position:
    return Position(
        step=step,
        score=score,
        epoch=step // 4,
        position=step * 16,
        world_size=2,
        config_digest="0" * 64,
        identity={"optimizer.lr": 0.1, "optimizer.betas": [0.9, 0.999], "seed": 0},
    )


def save(
    folder: Path, step: int, *, value: float = 0.0, keep: int = 3, is_best: bool = False
) -> Path:
    return save_checkpoint(
        folder,
        weights(value),
        {"progress": {"step": step}, "ema": torch.ones(2)},
        position(step),
        keep=keep,
        is_best=is_best,
    )


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def sign(checkpoint: Path) -> None:
    """Make the manifest say of the files what is true of them."""
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        content = (checkpoint / name).read_bytes()
        facts = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        manifest["files"][name] = facts
    del manifest["manifest_sha256"]
    text = json.dumps(manifest, sort_keys=True)
    manifest["manifest_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(manifest))
