"""One checkpoint on disk: written as a whole, verified by digest, loaded without executing code."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.errors import InputError
from configs.read_files import read_json
from trainer.checkpoints.atomic_files import flush_to_disk, replace_directory
from trainer.checkpoints.saved_state import check_file, check_tensors

FORMAT = 1
WEIGHTS, TRAINER, MANIFEST = "model.safetensors", "trainer.pt", "manifest.json"
VISIBLE_SECONDS = 70.0
"""A client of NFS may believe for a minute that a file is not there (acdirmax of nfs(5))."""
NAME = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where in its run a checkpoint stands."""

    step: int
    epoch: int
    """Finished epochs."""
    position: int
    """Global samples delivered since the run began."""
    world_size: int
    config_digest: str
    identity: dict[str, Any]
    """The config keys that define the mathematics of the run, dotted, and their values."""
    best_step: int = 0
    """Step of the best evaluation so far, 0 without one."""
    score: float | None = None
    """The metric of `evaluate.best` for these weights, negated where less is better; None if they
    were not evaluated."""


class Refused(ValueError):
    """A checkpoint that does not verify, and why."""


def folder_name(step: int) -> str:
    """The name of the directory of a step's checkpoint: step_NNNNNNNN."""
    return f"step_{step:08d}"


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint directory."""
    return int(path.name.removeprefix("step_"))


def write_checkpoint(
    path: Path, weights: dict[str, Any], trainer: dict[str, Any], position: Position
) -> None:
    """Write a checkpoint to the directory `path`, in place of an older one of that name.

    What is no tensor in the state dict (a module's `get_extra_state`) lies in trainer.pt. The
    manifest says that all of it is finite, which the caller has seen to.

    The files are written to a temporary directory, flushed to disk and renamed, so a directory
    called step_NNNNNNNN is complete or is not there.

    Raises:
        OSError: If the disk is full or gone; `path` is as it was.
    """
    from safetensors.torch import save_file

    temporary = path.with_name(f".writing-{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
        extra = {name: value for name, value in weights.items() if name not in tensors}
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        torch.save(trainer | {"extra_state": extra} if extra else trainer, temporary / TRAINER)
        manifest = {
            "format": FORMAT,
            **asdict(position),
            "files": {name: _facts(temporary / name) for name in (WEIGHTS, TRAINER)},
            "finite": True,
            "torch": torch.__version__,
            "saved_at": time.time(),
        }
        manifest["manifest_sha256"] = _manifest_digest(manifest)
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        for written in (*temporary.iterdir(), temporary):
            flush_to_disk(written)
        replace_directory(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Check that every file of a checkpoint is there with the size and digest of its manifest.

    Returns:
        The manifest.

    Raises:
        Refused: With the reason, if the checkpoint is not as it was written.
    """
    try:
        manifest = read_json(path / MANIFEST)
        expected = {name: dict(facts) for name, facts in manifest["files"].items()}
        Position(**{name: manifest[name] for name in Position.__dataclass_fields__})
        untouched = manifest["manifest_sha256"] == _manifest_digest(manifest)
        complete = {WEIGHTS, TRAINER} <= expected.keys()
    except FileNotFoundError:
        raise Refused(f"{MANIFEST} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{MANIFEST} is unreadable ({error})") from None
    if manifest.get("format") != FORMAT:
        raise Refused(f"{MANIFEST} has format {manifest.get('format')!r}, not {FORMAT}")
    if not untouched or not complete:
        raise Refused(f"{MANIFEST} is not as it was written")
    if NAME.fullmatch(path.name) and step_of(path) != manifest["step"]:
        raise Refused(f"{MANIFEST} is of step {manifest['step']}")
    for name, facts in expected.items():
        try:
            found = _facts(path / Path(name).name)
        except OSError as error:
            raise Refused(f"{name}: {error.strerror}") from None
        if found["bytes"] != facts.get("bytes"):
            raise Refused(f"{name} has {found['bytes']} bytes instead of {facts.get('bytes')}")
        if found["sha256"] != facts.get("sha256"):
            raise Refused(f"{name} has another SHA-256 than its manifest says")
    assert isinstance(manifest, dict)
    return manifest


def check_extra_state(module: nn.Module) -> None:
    """Refuse a module whose `get_extra_state` gives what a checkpoint cannot hold.

    Raises:
        InputError: Before the first step rather than at every save.
    """
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor):
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


def verify_numbers(path: Path, manifest: dict[str, Any]) -> None:
    """Check that a checkpoint that verifies holds no NaN, where its manifest does not say so.

    Raises:
        Refused: With the name of what does. Earlier versions saved it.
    """
    if manifest.get("finite") is True:
        return
    weights, trainer = load_checkpoint(path)
    name = next(_with_nan(weights | trainer), None)
    if name is not None:
        raise Refused(f"{name} is not a number")


def _with_nan(state: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the tensors in nested mappings that hold NaN."""
    for key, value in state.items():
        if isinstance(value, dict):
            yield from _with_nan(value, f"{prefix}{key}.")
        elif isinstance(value, Tensor) and value.isnan().any():
            yield f"{prefix}{key}"


def wait_until_visible(path: Path) -> None:
    """Wait for a checkpoint of which another machine says that it is there, but not for ever.

    On a network file system this machine may see it later, and then as a whole.
    """
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not os.path.exists(path / MANIFEST) and time.monotonic() < deadline:
        time.sleep(0.1)


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load the weights and the trainer state of a checkpoint; never executes code.

    Args:
        path: Its directory, which `verify_checkpoint` has accepted.

    Returns:
        Both in host memory, as they were given to `write_checkpoint`.

    Raises:
        InputError: If a file cannot be parsed.
    """
    from safetensors.torch import load_file

    try:
        weights = load_file(path / WEIGHTS)
        check_file(path / TRAINER)
        trainer = torch.load(path / TRAINER, map_location="cpu", weights_only=True)
        check_tensors(trainer)
    except Exception as error:  # damaged bytes can make an unpickler raise almost anything
        raise InputError(
            f"checkpoint {path} cannot be read ({' '.join(str(error).split())[:200]})",
            expected="a checkpoint directory written by this trainer",
        ) from None
    if not isinstance(trainer, dict):
        raise InputError(f"checkpoint {path}", given=type(trainer).__name__, expected="a mapping")
    extra = trainer.pop("extra_state", {})
    if not isinstance(extra, dict):
        raise InputError(f"checkpoint {path}: extra_state", given=extra, expected="a mapping")
    return weights | extra, trainer


def _manifest_digest(manifest: dict[str, Any]) -> str:
    """SHA-256 over everything in a manifest but this digest itself."""
    rest = {name: value for name, value in manifest.items() if name != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _facts(path: Path) -> dict[str, Any]:
    """SHA-256 and size in bytes of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}
