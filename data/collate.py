"""How samples become a batch: `data.collate`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate

from configs.errors import InputError
from configs.imports import import_callable
from configs.schema import DataConfig
from data.samples import Collate
from data.structures import TARGETS, as_tensor_or_none, fields_of, is_record, outline, split

IGNORED = -100
"""What torch's losses take for a target that is not there."""


def choose_collate(config: DataConfig) -> Collate:
    """What `data.collate` names, or torch's own.

    Raises:
        InputError: If it is no callable.
    """
    if config.collate is None:
        return stack
    protocol = "a callable (list of samples) -> a batch, as torch's DataLoader takes it"
    return import_callable("data.collate", config.collate, protocol, takes=1)


def stack(samples: list[Any]) -> Any:
    """The same tensors of all samples, one above the other, as torch's DataLoader does.

    Raises:
        InputError: If their shapes differ.
    """
    try:
        return default_collate(samples)
    except RuntimeError:
        for what, parts in (("inputs", 0), ("targets", 1)):
            shapes = {_shape(split(sample)[parts]) for sample in samples}
            if len(shapes) > 1:
                raise InputError(
                    f"{what} of one batch",
                    given=f"shapes [{', '.join(sorted(shapes)[:4])}]",
                    expected="the same shape for every sample",
                    remedy="Crop, resize or pad in the data set, pad each batch to its longest "
                    "with --data.collate data.collate:pad, or name a collate function of your own.",
                ) from None
        raise


def _shape(part: Any) -> str:
    tensor = as_tensor_or_none(part)
    return outline(part) if tensor is None else str(tuple(tensor.shape))


def pad(samples: list[Any]) -> Any:
    """Samples of several lengths, each tensor padded to the longest of the micro-batch.

    Inputs are padded with 0, integer targets with -100, which losses ignore. Samples with names
    get an `attention_mask` `(B, L)` int64, 1 where there is something, unless they bring one;
    the input `x` of an `(x, y)` sample becomes `(x, mask)` with a bool mask.

    Args:
        samples: Mappings or `(x, y)`; a tensor `(L, ...)` has a length, others have none.
    """
    if is_record(samples[0]):
        named = [fields_of(sample) for sample in samples]
        batch = {name: _pad([item[name] for item in named], name) for name in named[0]}
        inputs = [name for name in named[0] if name not in TARGETS and _has_length(named[0][name])]
        if inputs and "attention_mask" not in batch:
            batch["attention_mask"] = _mask([item[inputs[0]] for item in named]).long()
        return batch
    inputs, targets = ([split(sample)[part] for sample in samples] for part in (0, 1))
    return (_pad(inputs, "input"), _mask(inputs)), _pad(targets, "target")


def _pad(parts: list[Any], name: str) -> Any:
    if not _has_length(parts[0]):
        return default_collate(parts)
    rows = [torch.as_tensor(part) for part in parts]
    whole = not rows[0].is_floating_point()
    return pad_sequence(
        rows, batch_first=True, padding_value=IGNORED if name in TARGETS and whole else 0
    )


def _mask(parts: list[Any]) -> Tensor:
    lengths = torch.tensor([len(part) for part in parts])
    return torch.arange(int(lengths.max())) < lengths[:, None]


def _has_length(part: Any) -> bool:
    return getattr(part, "ndim", 0) > 0  # of tensors and of numpy's arrays
