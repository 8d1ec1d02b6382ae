"""A data set whose samples know their number, and a model that writes down what it is shown."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from data.datasets import ArrayDataset, Datasets

NUM_FEATURES = 12
STEP_SECONDS = 0.01
EVALUATIONS = "evaluated.jsonl"
"""Grows in the working folder with every batch of an evaluation."""


def samples(num_samples: int = 203, num_test: int = 57) -> Datasets:
    """Points in 4 classes; the first feature of a training sample is its number."""
    generator = torch.Generator().manual_seed(0)

    def points(count: int) -> ArrayDataset:
        targets = torch.randint(4, (count,), generator=generator)
        inputs = torch.randn(count, NUM_FEATURES, generator=generator) + targets[:, None]
        inputs[:, 0] = torch.arange(count)
        return ArrayDataset(inputs, targets)

    return Datasets(
        train=points(num_samples),
        test=points(num_test),
        input_shape=(NUM_FEATURES,),
        num_classes=4,
    )


class SampleRecorder(nn.Module):
    """A small network with dropout and batch norm that records the samples of every training pass.

    `calls` counts global batches and is part of the state, so a record says which batch of the run
    it belongs to, in whichever try. Records go to the working folder, one file for each rank.
    """

    calls: Tensor

    def __init__(self, num_classes: int, num_samples: int) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.layers = nn.Sequential(
            nn.Linear(NUM_FEATURES, 32),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(32, num_classes),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        ids = inputs[:, 0].int().tolist()
        # What is tried before the first step is several copies of one sample.
        if self.training and len({*ids}) == len(ids):
            time.sleep(STEP_SECONDS)  # long enough to be hit
            line = json.dumps([int(self.calls), ids]) + "\n"
            with Path(f"delivered.{os.environ.get('RANK', '0')}.jsonl").open("a") as file:
                file.write(line)
            self.calls += 1
        elif not self.training:
            time.sleep(STEP_SECONDS)
            with Path(EVALUATIONS).open("a") as file:
                file.write(f"{len(inputs)}\n")
        scaled = torch.cat([inputs[:, :1] / self.num_samples, inputs[:, 1:]], dim=1)
        logits: Tensor = self.layers(scaled)
        return logits


@dataclass(frozen=True, slots=True)
class Deliveries:
    """What the tries of a run were shown."""

    every: list[tuple[int, set[int]]]
    """Each global batch of each try, with its samples over all ranks."""
    last: dict[int, list[int]]
    """The samples of each global batch in the last try that trained on it, sorted."""

    @property
    def num_calls(self) -> int:
        return len(self.every)


def read_deliveries(run: Path) -> Deliveries:
    """Collect the lines of all tries and ranks; a line cut short by a kill does not count."""
    every: list[tuple[int, set[int]]] = []
    last: dict[int, list[int]] = {}
    for folder in sorted(run.glob("try-*")):
        batches: dict[int, list[int]] = {}
        for path in sorted(folder.glob("delivered.*.jsonl")):
            for line in path.read_text().splitlines():
                try:
                    call, ids = json.loads(line)
                except ValueError:
                    continue
                batches.setdefault(call, []).extend(ids)
        every += [(call, set(ids)) for call, ids in batches.items()]
        last |= {call: sorted(ids) for call, ids in batches.items()}
    return Deliveries(every, last)
