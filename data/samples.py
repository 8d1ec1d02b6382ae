"""What a data set is: samples by index, alone or a batch at a time; a set to train on, one to test
on, perhaps one to choose on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from data.facts import InputFacts
from data.structures import map_tensors, split, tensors


class Batch(NamedTuple):
    """Some samples: tensors, or structures of them (data/structures.py), on one device."""

    inputs: Any
    """What the model takes, `(B, ...)`."""
    targets: Any
    """What it learns, `(B, ...)`."""
    size: int
    """B. Without samples a batch of one stands in, unless it is of plain tensors of no rows."""

    def to(self, device: torch.device) -> Batch:
        return self.map(lambda tensor: tensor.to(device))

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The same samples with every tensor replaced."""
        inputs = map_tensors(function, self.inputs)
        return Batch(inputs, map_tensors(function, self.targets), self.size)


Collate = Callable[[list[Any]], Any]
"""Samples as the data set gives them -> a batch of them as `split` takes it."""


@dataclass(frozen=True, slots=True)
class Example:
    """The first sample of a training set, for whoever has to know what batches look like."""

    sample: Any
    collate: Collate

    def content(self, size: int = 1) -> Any:
        """A batch of copies of it as it is collated, in host memory."""
        return self.collate([self.sample] * size)

    def batch(self, size: int = 1) -> Batch:
        """The same taken apart."""
        return Batch(*split(self.content(size)), size)


class MapDataset(Protocol):
    """What a user's data set must offer: a length, and samples by index.

    A sample is an `(input, target)` pair or another structure that `structures.split` takes apart.
    The target is a class (a whole number), or the tensor that another task learns from.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@runtime_checkable
class BatchDataset(Protocol):
    """A data set that reads a batch in one go, and draws no random numbers doing so."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...

    def gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs `(B, ...)` and targets `(B, ...)` of int64 `indices` `(B,)`, in their order."""
        ...


class ArrayDataset:
    """Samples held whole in memory, gathered a batch at a time.

    Args:
        inputs: `(N, ...)`, any dtype; images are uint8 `(N, C, H, W)`. Or a structure of such.
        targets: `(N,)` int64 classes, or `(N, ...)` for other tasks; or a structure.
    """

    def __init__(self, inputs: Any, targets: Any) -> None:
        sizes = {len(tensor) for tensor in tensors((inputs, targets))}
        assert len(sizes) == 1, f"as many samples in every tensor, given {sorted(sizes)}"
        self.inputs = inputs
        self.targets = targets
        (self.size,) = sizes

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self._pick(lambda tensor: tensor[index])

    def gather(self, indices: Tensor, out: tuple[Any, Any] | None = None) -> tuple[Any, Any]:
        """`(inputs[indices], targets[indices])` in one gather for each tensor, perhaps into what an
        earlier call gave."""
        if out is None:
            return self._pick(lambda tensor: torch.index_select(tensor, 0, indices))
        held = tensors((self.inputs, self.targets))
        for tensor, place in zip(held, tensors(out), strict=True):
            torch.index_select(tensor, 0, indices, out=place)
        return out

    def rows(self, start: int, stop: int) -> tuple[Any, Any]:
        """Inputs and targets of samples in a row, without a copy."""
        return self._pick(lambda tensor: tensor[start:stop])

    def to(self, device: torch.device) -> ArrayDataset:
        return ArrayDataset(*self._pick(lambda tensor: tensor.to(device)))

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in tensors((self.inputs, self.targets)))

    def _pick(self, function: Callable[[Tensor], Tensor]) -> tuple[Any, Any]:
        return map_tensors(function, self.inputs), map_tensors(function, self.targets)


MOST_READ = 4096
"""Samples that moments are found from, where each has to be read by itself."""
NOTHING = ArrayDataset(torch.empty(0), torch.empty(0))
"""A data set without samples."""

Moments = tuple[tuple[float, ...], tuple[float, ...], float]
"""Mean, standard deviation and scale, as `InputFacts` has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Datasets(InputFacts):
    """A training and a test set, perhaps a validation set, and what a model must know of them."""

    train: MapDataset
    test: MapDataset = NOTHING
    """Without samples if there is none: `data.test` then cuts one out of the training set."""
    validation: MapDataset | None = None
    """What everything that chooses looks at; without one it looks at the test set."""
    left_out: tuple[str, ...] = ()
    """What was found and not read, and why."""
    measure: Callable[[Any], Moments] | None = None
    """Finds mean, std and scale of the training set as it is when all others are cut out of it."""

    @property
    def chosen_on(self) -> str:
        """The set that everything looks at which chooses: `validation` or `test`."""
        return "test" if self.validation is None else "validation"

    @property
    def held_out(self) -> dict[str, MapDataset]:
        """The sets that are not trained on, by name; first the one that is chosen on."""
        test = {"test": self.test}
        return test if self.validation is None else {"validation": self.validation, **test}

    def measured(self) -> Self:
        """The same with the moments of its training set."""
        if self.measure is None:
            return self
        mean, std, scale = self.measure(self.train)
        return replace(self, mean=mean, std=std, scale=scale, measure=None)

    def facts(self) -> InputFacts:
        """The facts alone; the type of inputs held in memory is found from them."""
        known = {item.name: getattr(self, item.name) for item in fields(InputFacts)}
        held = self.train.inputs if isinstance(self.train, ArrayDataset) else None
        if isinstance(held, Tensor) and not self.dtype:
            known["dtype"] = dtype_name(held)
        return InputFacts(**known)


def dtype_name(inputs: Tensor) -> str:
    return str(inputs.dtype).removeprefix("torch.")


def moments_of_array(data: ArrayDataset) -> Moments:
    return moments(data.inputs)


def moments_of_some(data: MapDataset) -> Moments:
    """Those of samples spread evenly over a data set that is read one by one."""
    count = min(len(data), MOST_READ)
    indices = (number * len(data) // count for number in range(count))
    return moments(torch.stack([torch.as_tensor(split(data[index])[0]) for index in indices]))


def moments(inputs: Tensor) -> Moments:
    """Mean and standard deviation in units of inputs / scale; exact for uint8.

    Of pictures `(N, C, H, W)` one for each channel, of vectors of floats `(N, F)` one for each
    feature, of anything else one.
    """
    if inputs.ndim == 2 and inputs.is_floating_point():
        features = inputs.double()
        deviations = features.std(0, correction=0)
        deviations[(inputs == inputs[0]).all(0)] = 1.0  # nothing to divide by
        return tuple(features.mean(0).tolist()), tuple(deviations.tolist()), 1.0
    scale = 255.0 if inputs.dtype == torch.uint8 else 1.0
    means, stds = [], []
    for channel in range(inputs.shape[1] if inputs.ndim == 4 else 1):
        values = inputs[:, channel] if inputs.ndim == 4 else inputs
        if values.dtype == torch.uint8:
            counts = torch.bincount(values.reshape(-1), minlength=256).double()
            levels = torch.arange(256, dtype=torch.float64)
            mean = float((counts * levels).sum() / counts.sum())
            var = float((counts * (levels - mean) ** 2).sum() / counts.sum())
        else:
            mean, var = float(values.double().mean()), float(values.double().var(correction=0))
        means.append(mean / scale)
        constant = bool((values == values.reshape(-1)[0]).all())  # nothing to divide by
        stds.append(1.0 if constant else var**0.5 / scale)
    return tuple(means), tuple(stds), scale
