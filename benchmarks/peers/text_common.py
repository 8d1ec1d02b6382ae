"""What the peers of the language model share: configs/gpt_chars.yaml in plain torch, its text."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from torch.utils.data import Dataset

from configs.load import RECIPES
from configs.schema import DataConfig
from data.datasets import load_datasets
from trainer.networks.gpt import GPT

RECIPE: dict[str, Any] = yaml.safe_load((RECIPES / "gpt_chars.yaml").read_text())
CONTEXT: int = RECIPE["data"]["kwargs"]["context"]
BATCH: int = RECIPE["train"]["global_batch_size"]
CLIP: float = RECIPE["train"]["clip_norm"]


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Windows of a text in memory, int64 `(T,)` and the same one token further."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs = inputs
        self.targets = targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


def load_text(limit: int | None = None) -> tuple[Windows, Windows, int]:
    """Windows to train on (the first `limit` of them) and to test on, and the vocabulary's size."""
    data = load_datasets(DataConfig(**RECIPE["data"]), seed=0)
    train, test = (
        Windows(*part.gather(torch.arange(len(part))))  # type: ignore[attr-defined]
        for part in (data.train, data.test)
    )
    return Windows(train.inputs[:limit], train.targets[:limit]), test, data.num_classes


def decoder(vocabulary: int) -> GPT:
    return GPT((CONTEXT,), vocabulary, **RECIPE["model"]["kwargs"])


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over the tokens of a batch."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def adamw(model: nn.Module) -> torch.optim.AdamW:
    """AdamW whose decay leaves vectors alone."""
    options = RECIPE["optimizer"]
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": options["weight_decay"]},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options["lr"], betas=tuple(options["betas"]))


def cosine(optimizer: torch.optim.Optimizer, total_steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """A linear warm-up, then half a cosine, stepped after every step."""
    options = RECIPE["schedule"]
    warmup, final = options["warmup_steps"], options["final_fraction"]

    def factor(step: int) -> float:
        if step < warmup:
            return float((step + 1) / warmup)
        done = (step - warmup) / max(total_steps - warmup - 1, 1)
        return float(final + (1 - final) * (1 + math.cos(math.pi * min(done, 1.0))) / 2)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@torch.no_grad()
def test_loss(model: nn.Module, windows: Windows, device: torch.device) -> tuple[float, float]:
    """Mean loss and accuracy of the tokens to test on."""
    model.eval()
    total, right, count = 0.0, 0, 0
    for first in range(0, len(windows), 32):
        span = slice(first, first + 32)
        inputs, targets = windows.inputs[span].to(device), windows.targets[span].to(device)
        logits = model(inputs)
        total += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
        right += int((logits.argmax(-1) == targets).sum())
        count += int((targets != -100).sum())
    return total / count, right / count
