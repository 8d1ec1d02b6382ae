"""`model.weights`: what a new run starts from instead of the weights that were drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.errors import InputError, one_line
from configs.schema_model import ModelConfig
from trainer.checkpoints.atomic_files import follow
from trainer.checkpoints.checkpoint import MANIFEST, WEIGHTS, Refused, load_checkpoint
from trainer.checkpoints.checkpoint import verify_checkpoint as verify
from trainer.checkpoints.checkpoint_parts import PART
from trainer.networks.trained_parts import check_patterns, matches

EXPECTED = (
    "a file of safetensors or of a state dict that torch.load(weights_only=True) reads, a "
    "checkpoint, or a run directory that has one"
)
WITHIN = ("state_dict", "model_state_dict", "model")
"""Where other programs keep the state dict in what they save."""
AROUND = ("module.", "_orig_mod.")
"""What DDP and torch.compile put before every name."""


def read_weights(given: str) -> dict[str, Tensor]:
    """Tensors by name, in host memory; never executes code.

    Of a run directory the best checkpoint, or the latest if none was evaluated; of a checkpoint the
    average of the weights if there is one, which is what was evaluated.

    Raises:
        InputError: If there is nothing to read, or it is damaged.
    """
    path = Path(given).expanduser()
    try:
        folder = follow(path)
        found = _read_directory(folder) if folder.is_dir() else _read_file(path)
    except InputError:
        raise
    except Exception as error:  # damaged bytes can make an unpickler raise almost anything
        reason = one_line(error)
        raise InputError(
            "model.weights", given=given, expected=EXPECTED, remedy=f"It says: {reason}."
        ) from None
    while isinstance(found, Mapping) and not any(isinstance(v, Tensor) for v in found.values()):
        found = next((found[key] for key in WITHIN if key in found), None)
    tensors = {} if found is None else {n: v for n, v in found.items() if isinstance(v, Tensor)}
    for prefix in AROUND:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    if not tensors:
        raise InputError("model.weights", given=given, expected=EXPECTED, remedy="It has no names.")
    return tensors


def _read_directory(path: Path) -> Any:
    links = (follow(path / "checkpoints" / name) for name in ("best", "latest"))
    path = next((found for found in links if found.is_dir()), path)
    if not (path / MANIFEST).is_file():
        return _read_file(path / WEIGHTS)  # as libraries save a model to a folder
    try:
        verify(path)
    except Refused as reason:
        raise InputError(
            "model.weights",
            given=str(path),
            expected="a checkpoint as it was written",
            remedy=f"It was refused because {reason}.",
        ) from None
    weights, trainer = load_checkpoint(path)
    return trainer.get("ema") or weights


def _read_file(path: Path) -> Any:
    if PART.fullmatch(path.name):
        raise InputError(
            "model.weights",
            given=f"{path}, which has some rows of each weight",
            expected=EXPECTED,
            remedy=f"Name the checkpoint: --model.weights {path.parent}",
        )
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, whatever file they came from."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], config: ModelConfig) -> str:
    """Load them into a module, whole on this rank and on whatever device.

    All names must be there and fit, but for those that `model.weights_partial` leaves out: these
    keep the values that were drawn.

    Returns:
        What was loaded, missing and left over, for the log.

    Raises:
        InputError: With every name that does not fit, and the patterns that would leave it out.
    """
    own = {n: v for n, v in module.state_dict().items() if isinstance(v, Tensor)}
    patterns = config.weights_partial
    check_patterns("model.weights_partial", patterns, {**own, **weights})

    def left_out(name: str) -> bool:
        return any(matches(name, pattern) for pattern in patterns)

    shared = {n: weights[n] for n in own if n in weights and not left_out(n)}
    shapes = {n: v for n, v in shared.items() if v.shape != own[n].shape}
    loaded = {n: v for n, v in shared.items() if n not in shapes}
    held = {own[n].data_ptr() for n in loaded}  # tied weights have one name in many a file
    missing = [n for n in own if n not in weights and own[n].data_ptr() not in held]
    extra = [n for n in weights if n not in own]
    refused = [n for n in (*shapes, *missing, *extra) if n in shapes or not left_out(n)]
    mismatched = [f"{n} {tuple(v.shape)} for {tuple(own[n].shape)}" for n, v in shapes.items()]
    line = (
        f"weights from {config.weights}: {len(loaded)} loaded, {_some(missing, 'missing')}, "
        f"{_some(extra, 'left over')}"
    )
    line += f", {_some(mismatched, 'of another shape')}" if shapes else ""
    if refused:
        tops = list(dict.fromkeys(f"{n.rpartition('.')[0] or n}.*" for n in refused))
        raise InputError(
            line,
            expected="all names of the model, in its shapes, and no others",
            remedy="To leave some out, name them: --model.weights_partial "
            f"'[{', '.join(tops[:8])}]'.",
        )
    module.load_state_dict(loaded, strict=False)
    if patterns:
        line += f", left out as model.weights_partial says: {', '.join(patterns)}"
    return line


def _some(names: Iterable[str], what: str) -> str:
    """As in `2 missing (head.weight, head.bias)`."""
    found = list(names)
    shown = ", ".join(found[:6]) + (", ..." if len(found) > 6 else "")
    return f"{len(found)} {what}" + (f" ({shown})" if found else "")
