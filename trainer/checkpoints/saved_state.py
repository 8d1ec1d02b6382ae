"""What trainer.pt may hold: whoever wrote it, it is checked before any of it is put to use."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.errors import InputError
from configs.own_modules import PREFIX
from trainer.checkpoints.checkpoint_parts import type_names
from trainer.engines.dtensor import Stored
from trainer.optim.slots import ELEMENTWISE, SCALARS

MOST = 2**53
"""Of a count; what a float of a record can hold."""
DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "npu")
GENERATORS = {"python": 625, "numpy": 624}
"""Words of each state."""


def check_file(path: Path) -> None:
    """Refuse a file that unfolds to more than its size, or is no zip of torch's.

    Raises:
        ValueError: With the reason.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("its parts are compressed")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("its parts overlap")


def check_module(module: nn.Module) -> None:
    """Refuse a module that keeps what a checkpoint cannot hold.

    Raises:
        InputError: Before the first step rather than at every save.
    """
    state = module.state_dict()
    saved = {n: v for n, v in state.items() if isinstance(v, Tensor)}
    for name, value in {**dict(module.named_buffers()), **saved}.items():
        typed = value.dtype in type_names() or name not in saved
        if value.layout != torch.strided or not typed:
            kind = value.layout if typed else value.dtype
            raise InputError(
                f"{name} of the model",
                given=f"a tensor of {kind}",
                expected="a dense tensor of a type that safetensors holds",
                remedy="Register the dense tensors that it is made of, such as indices and "
                "values, or keep it in a plain attribute, which no checkpoint has.",
            )
    for name, value in state.items():
        if name in saved:
            continue
        file = io.BytesIO()
        try:
            torch.save(value, file)
            file.seek(0)
            torch.load(file, weights_only=True)
        except Exception as error:  # picklers raise what they like
            raise InputError(
                f"{name} of the model",
                given=f"{type(value).__name__} ({' '.join(str(error).split())[:120]})",
                expected="what torch.load(weights_only=True) reads: numbers, texts, tensors, and "
                "lists and mappings of them",
                remedy="Let get_extra_state return such.",
            ) from None


def check_tensors(state: Any) -> None:
    """Refuse tensors that claim more values than the file holds.

    Raises:
        ValueError: With the shape of one.
    """
    for tensor in _tensors(state):
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not dense or tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise ValueError(f"a tensor {tuple(tensor.shape)} has fewer values than it says")


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping | list | tuple | set):
        for item in state.values() if isinstance(state, Mapping) else state:
            yield from _tensors(item)


def check_trainer(trainer: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
    """Refuse a state that this trainer cannot have written.

    Args:
        trainer: As `capture` gives it.
        progress: That of a fresh run, which says what type each value has.

    Raises:
        ValueError: With what is wrong, by its dotted name.
    """
    for key in ("progress", "optimizer", "optimizer_class", "ranks", "device_type"):
        _expect(key in trainer, key, "nothing", "a value")
    found = trainer["progress"]
    _expect(isinstance(found, dict), "progress", found, "a mapping")
    for key in ("step", "window"):
        _expect(key in found, f"progress.{key}", "nothing", "a whole number")
    for key, value in found.items():
        _expect(key in progress, f"progress.{key}", value, "a key that is known")
        _check_value(f"progress.{key}", value, progress[key])
    for key in ("best_step", "evaluated_step"):
        late = found.get(key, 0) > found["window"]
        _expect(not late, f"progress.{key}", found.get(key), f"{found['window']} or less")
    batches = found["step"] + found.get("skipped_steps", 0)
    _expect(found["window"] == batches, "progress.window", found["window"], f"{batches}")
    _expect(trainer["device_type"] in DEVICES, "device_type", trainer["device_type"], "a device")
    ranks = trainer["ranks"]
    _expect(isinstance(ranks, list) and len(ranks) > 0, "ranks", ranks, "a list of one or more")
    for number, rank in enumerate(ranks):
        _check_rank(f"ranks.{number}", rank, found["window"])
    for key in ("schedule", "buffers", "scaler", "ema"):
        value = trainer.get(key)
        _expect(value is None or isinstance(value, dict), key, value, "a mapping")
    _check_named_tensors("buffers", trainer.get("buffers"))


def check_optimizer(state: Any, optimizer: torch.optim.Optimizer) -> None:
    """Refuse a state whose tensors do not have the shapes of the optimizer's parameters.

    Only of optimizers of torch and ours: what others keep is theirs to check.

    Raises:
        ValueError: With what is wrong.
    """
    parts = state.get("state") if isinstance(state, dict) else None
    _expect(isinstance(parts, dict), "optimizer.state", type(parts).__name__, "a mapping")
    assert isinstance(parts, dict)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    known = any(
        k.__module__.startswith(("torch.", f"{PREFIX}trainer."))
        for k in type(optimizer).__mro__[:1]
    )
    slots: dict[int, set[str]] = {}  # some optimizers treat matrices and vectors differently
    for index, own in parts.items():
        if isinstance(own, dict) and isinstance(index, int) and 0 <= index < len(parameters):
            slots.setdefault(parameters[index].ndim, set()).update(own)
    for index, own in parts.items():
        name = f"optimizer.state.{index}"
        _expect(isinstance(index, int) and 0 <= index < len(parameters), name, "state", "none")
        _expect(isinstance(own, dict), name, own, "a mapping")
        if not known:
            continue
        others = slots[parameters[index].ndim]
        _expect(own.keys() == others, name, list(own), f"{list(others)}, as of the others")
        for key, value in own.items():
            _check_slot(f"{name}.{key}", key, value, parameters[index])


def _check_slot(name: str, key: str, value: Any, parameter: Tensor) -> None:
    if key in SCALARS:
        number = value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, int | float)
        _expect(number, name, value, "one number")
        whole = key != "step" or (0 <= float(value) <= MOST and float(value).is_integer())
        _expect(whole, name, value, "a count")
    elif key in ELEMENTWISE and not (value is None and key == "momentum_buffer"):
        held = isinstance(value, Tensor | Stored)
        shape = tuple(value.shape) if held else type(value).__name__
        # A scalar among ranks is (1,), and so it lies in a checkpoint in parts.
        alike = shape == tuple(parameter.shape) or {shape, tuple(parameter.shape)} == {(), (1,)}
        _expect(alike, name, shape, f"shape {tuple(parameter.shape)}")


def _check_value(name: str, value: Any, like: Any) -> None:
    """Whether a value has the type of another one; a count is bounded."""
    if isinstance(like, dict):
        numbers = isinstance(value, dict) and all(
            isinstance(k, str) and isinstance(v, int | float) for k, v in value.items()
        )
        _expect(numbers, name, value, "numbers by name")
    elif isinstance(like, bool):
        _expect(isinstance(value, bool), name, value, "true or false")
    elif isinstance(like, float):
        real = isinstance(value, int | float) and math.isfinite(value) and value >= 0
        _expect(real, name, value, "a number, 0 or more")
    else:
        _expect(_is_count(value, min(like, 0)), name, value, "a whole number, 0 or more")


def _is_count(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MOST


def _check_rank(name: str, rank: Any, window: int) -> None:
    _expect(isinstance(rank, dict), name, rank, "a mapping")
    meter, rng = rank.get("meter"), rank.get("rng")
    _expect(isinstance(meter, dict), f"{name}.meter", meter, "a mapping")
    windows, counts = meter.get("windows"), meter.get("counts")
    for key, numbers in (("windows", windows), ("counts", counts)):
        counted = isinstance(numbers, list) and all(map(_is_count, numbers))
        _expect(counted, f"{name}.meter.{key}", numbers, "whole numbers")
    _expect(all(number < window for number in windows), f"{name}.meter.windows", windows, "earlier")
    for key in ("losses", "scores"):
        value = meter.get(key)
        shape = tuple(value.shape) if isinstance(value, Tensor) else None
        _expect(shape == (len(windows),) == (len(counts),), f"{name}.meter.{key}", shape, "as many")
    _expect(isinstance(rng, dict), f"{name}.rng", rng, "a mapping")
    state = rng.get("torch")
    plain = isinstance(state, Tensor) and state.dtype == torch.uint8
    _expect(plain, f"{name}.rng.torch", type(state).__name__, "bytes")
    for key, words in GENERATORS.items():
        parts = rng.get(key)
        _expect(isinstance(parts, list | tuple), f"{name}.rng.{key}", parts, "a list")
        found = [part.numel() for part in parts if isinstance(part, Tensor)]
        _expect(found == [words], f"{name}.rng.{key}", found, f"{words} words")


def _check_named_tensors(name: str, value: Any) -> None:
    for key, item in (value or {}).items():
        _expect(isinstance(key, str) and isinstance(item, Tensor), name, key, "tensors by name")


def _expect(holds: bool, name: str, given: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} of trainer.pt is {str(given)[:60]!r}, not {expected}")
