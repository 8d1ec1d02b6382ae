"""Checkpoints of which several ranks write a part each, without starting any."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.checkpoints import position
from trainer.checkpoints.checkpoint import folder_name, unfinished
from trainer.checkpoints.checkpoint_folder import save_parts
from trainer.checkpoints.checkpoint_parts import Part, prepare_folder


def cut(whole: dict[str, Tensor], count: int) -> list[Part]:
    """As FSDP cuts: equal rows, of which the last ranks have fewer or none."""
    parts = [Part(rank, count) for rank in range(count)]
    for name, tensor in whole.items():
        if not tensor.dim():
            parts[0].tensors[name], parts[0].layout[name] = tensor, ([], 0)
            continue
        size = -(-tensor.shape[0] // count)
        for part, rows in zip(parts, tensor.split(size), strict=False):
            part.tensors[name] = rows.contiguous()
            part.layout[name] = (list(tensor.shape), part.rank * size)
    return parts


def state(value: float = 0.0) -> dict[str, Tensor]:
    """Of types of every size, and of shapes that three ranks cannot cut evenly."""
    return {
        "model/layer.weight": torch.full((4, 2), value),
        "model/layer.bias": torch.arange(5.0).to(torch.bfloat16),
        "model/count": torch.tensor(3),
        "model/mask": torch.tensor([True, False, True]),
        "ema/layer.weight": torch.full((4, 2), value / 2),
        "optimizer/0/exp_avg": torch.arange(8.0).reshape(4, 2) + value,
    }


def trainer_state(step: int) -> dict[str, Any]:
    return {
        "progress": {"step": step},
        "ema": {},
        "optimizer": {"state": {0: {"step": torch.tensor(float(step))}}, "param_groups": []},
    }


def save_in_parts(
    folder: Path,
    step: int,
    *,
    value: float = 0.0,
    parts: list[Part] | None = None,
    keep: int = 9,
    threads: int | None = None,
    seconds: float = 20.0,
) -> Path:
    """Save as so many ranks do; the last ones first with one thread, else all at once."""
    written = cut(state(value), 3) if parts is None else parts
    folder.mkdir(exist_ok=True)
    prepare_folder(unfinished(folder / folder_name(step)))

    def save(part: Part) -> Path:
        return save_parts(
            folder,
            part,
            trainer_state(step),
            position(step),
            keep=keep,
            is_best=False,
            seconds=seconds,
        )

    ordered = list(reversed(written))
    if threads == 1:
        return [save(part) for part in ordered][-1]
    with ThreadPoolExecutor(len(ordered)) as ranks:
        return list(ranks.map(save, ordered))[-1]
