"""What a run found in its data: how many samples, of which classes, and of what kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.loading.workers import borrowed_rng
from data.samples import ArrayDataset, BatchDataset, Datasets, MapDataset, dtype_name
from data.splits import labels_of
from data.structures import as_tensor_or_none, fields_of, is_record, outline, split, tensors

MOST_BYTES = 1 << 26
"""Of inputs that are looked at for their range, where they are not read one by one."""
FEW_SAMPLES = 8
"""The same of inputs that are."""
PURPOSES = {"train": "to train on", "validation": "to choose on", "test": "to test on"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The content of `data` in model.json."""

    samples: dict[str, int]
    """In each set: train, validation, test."""
    samples_per_class: dict[str, tuple[int, int]]
    """Fewest and most in each set; without the sets whose classes are not known beforehand."""
    lacking: dict[str, list[str]]
    """Names of classes without a sample, for each set that lacks some."""
    shape: tuple[int, ...]
    dtype: str
    values: tuple[float, float] | None
    """Least and largest of the training inputs that were looked at; None: some are not finite."""
    left_out: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def line(self) -> str:
        """All of it on one line."""
        counts = ", ".join(f"{n:,} {PURPOSES[name]}" for name, n in self.samples.items())
        size = "x".join(map(str, self.shape)) or ("single" if self.dtype.isalnum() else "of")
        low, high = self.values or (float("nan"), float("nan"))
        values = f"{low:.6g} to {high:.6g}" if self.values else "with values that are not finite"
        parts = [f"data: {counts}"]
        if "train" in self.samples_per_class:
            fewest, most = self.samples_per_class["train"]
            parts.append(f"{fewest:,} to {most:,} of a class to train on")
        parts.append(f"inputs {size} {self.dtype} {values}")
        for name, classes in self.lacking.items():
            some = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
            parts.append(f"no {name} sample of {some}")
        return "; ".join(parts)


def describe(data: Datasets) -> Found:
    """Look at the data; reads few samples of those that are read one by one."""
    sets = {"train": data.train, **data.held_out}
    per_class, lacking = {}, {}
    for name, part in sets.items():
        labels = labels_of(part)
        if labels is None or not len(labels):
            continue
        counts = np.bincount(labels[labels >= 0], minlength=data.num_classes)
        per_class[name] = int(counts.min()), int(counts.max())
        absent = np.flatnonzero(counts[: data.num_classes] == 0)
        if len(absent):
            lacking[name] = [data.class_names[label] for label in absent]
    with borrowed_rng():  # a sample may draw: what the model draws must not depend on that
        some = _some_inputs(data.train)
    numbers = [tensor for tensor in tensors(some) if tensor.numel()]
    ranges = [tensor.aminmax() for tensor in numbers] or [torch.zeros(1).aminmax()]
    low = min(float(least) for least, _ in ranges)
    high = max(float(most) for _, most in ranges)
    finite = all(bool(torch.isfinite(torch.stack(tuple(found))).all()) for found in ranges)
    return Found(
        samples={name: len(part) for name, part in sets.items()},
        samples_per_class=per_class,
        lacking=lacking,
        shape=tuple(int(size) for size in data.input_shape),
        dtype=dtype_name(some) if isinstance(some, Tensor) else outline(some),
        values=(low, high) if finite else None,
        left_out=data.left_out,
    )


def first_not_finite(data: MapDataset, indices: Iterable[int]) -> int | None:
    """The first of these samples whose inputs hold NaN or infinity; reads them until then."""
    for index in indices:
        inputs = _inputs(data, int(index))
        if any(t.is_floating_point() and not t.isfinite().all() for t in tensors(inputs)):
            return int(index)
    return None


def _inputs(data: MapDataset, index: int) -> Any:
    """Of one sample, with numbers and numpy's arrays as tensors."""
    inputs, _ = split(data[index])
    if is_record(inputs):
        return {name: as_tensor_or_none(value) for name, value in fields_of(inputs).items()}
    if isinstance(inputs, tuple):
        return tuple(as_tensor_or_none(part) for part in inputs)
    return as_tensor_or_none(inputs)


def _some_inputs(data: MapDataset) -> Any:
    """Inputs spread evenly over a data set; of those that are no tensors of one shape, one's."""
    first = _inputs(data, 0)
    num_bytes = sum(tensor.nbytes for tensor in tensors(first))
    affordable = max(MOST_BYTES // max(num_bytes, 1), 1)
    count = min(len(data), affordable if isinstance(data, BatchDataset) else FEW_SAMPLES)
    if isinstance(data, ArrayDataset) and count == len(data):
        return data.inputs
    indices = torch.arange(count) * len(data) // count
    if isinstance(data, BatchDataset):
        return data.gather(indices)[0]
    if not isinstance(first, Tensor):
        return first
    found = [_inputs(data, int(index)) for index in indices]
    return torch.stack(found) if len({tensor.shape for tensor in found}) == 1 else first
