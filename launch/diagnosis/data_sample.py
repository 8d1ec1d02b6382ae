"""A look into a data set: all of an array, map-style data by as many samples as time allows."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.errors import InputError
from data.datasets import ArrayDataset, MapDataset
from data.structures import split, tensors

MOST_SAMPLES = 4096
MOST_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Looks:
    """What of a sample can be looked at by itself."""

    inputs: bool
    """Its inputs are one tensor of the same shape as those of the others."""
    classes: bool
    """Its target is a class."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Some or all samples of one split, in host memory."""

    inputs: Tensor
    """`(n, ...)`, in the data set's own dtype; `(n, 0)` where they are not one tensor."""
    targets: Tensor
    """`(n,)` int64; 0 where they are no classes."""
    total: int
    """Samples in the split."""
    bad: int = 0
    """How many of them hold a number that is not finite."""

    @property
    def is_complete(self) -> bool:
        return len(self.targets) == self.total

    @property
    def size(self) -> str:
        """`60,000` or `4,096 of 1,281,167`."""
        looked_at = f"{len(self.targets):,}"
        return looked_at if self.is_complete else f"{looked_at} of {self.total:,}"

    def subset(self, most: int, seed: int = 0) -> Sample:
        """A sample of at most `most` of these, drawn without replacement."""
        if len(self.targets) <= most:
            return self
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(self.targets), generator=generator)[:most]
        return Sample(self.inputs[chosen], self.targets[chosen], self.total)

    def digests(self) -> list[bytes]:
        """One hash per sample, equal for equal bytes."""
        rows = self.inputs.reshape(len(self.inputs), -1).contiguous().numpy()
        return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]


def read_sample(dataset: MapDataset, looks: Looks) -> Sample:
    """All of an ArrayDataset of classes; of any other one, samples spread evenly over it.

    Raises:
        InputError: If samples differ in shape or a target is not a whole number.
    """
    if isinstance(dataset, ArrayDataset) and looks.inputs and looks.classes:
        inputs = dataset.inputs.cpu()
        return Sample(inputs, dataset.targets.cpu(), len(dataset), not_finite(inputs))
    total, bad = len(dataset), 0
    found, targets = [], []
    deadline = time.monotonic() + MOST_SECONDS
    for index in _spread(total, min(total, MOST_SAMPLES)):
        content = dataset[index]
        sample, target = split(content)
        found.append(torch.as_tensor(sample) if looks.inputs else torch.empty(0))
        targets.append(int(target) if looks.classes else 0)
        bad += any(not_finite(tensor[None]) for tensor in tensors(content))
        if time.monotonic() > deadline:
            break
    shapes = {tuple(tensor.shape) for tensor in found}
    if len(shapes) > 1:
        raise InputError(
            "data.dataset",
            given=f"inputs of shapes {sorted(shapes)[:4]}",
            expected="the same shape for every sample",
            remedy="Crop, resize or pad in the data set.",
        )
    return Sample(torch.stack(found), torch.tensor(targets), total, bad)


def not_finite(rows: Tensor) -> int:
    """How many of some rows hold NaN or infinity."""
    if not rows.is_floating_point():
        return 0
    return int((~torch.isfinite(rows)).reshape(len(rows), -1).any(1).sum())


def _spread(total: int, number: int) -> Sequence[int]:
    """Indices spread evenly, in random order, so that a part of them is a fair sample too."""
    generator = torch.Generator().manual_seed(0)
    indices = sorted({round(i * (total - 1) / max(number - 1, 1)) for i in range(number)})
    return [indices[i] for i in torch.randperm(len(indices), generator=generator).tolist()]
