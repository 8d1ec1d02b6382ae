"""One checkpoint on disk: written as a whole, verified by digest, loaded without executing code."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.errors import InputError
from trainer.checkpoints.atomic_files import flush_to_disk, replace_directory

FORMAT = 1
WEIGHTS, TRAINER, MANIFEST = "model.safetensors", "trainer.pt", "manifest.json"
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
    path: Path, weights: dict[str, Tensor], trainer: dict[str, Any], position: Position
) -> None:
    """Write a checkpoint to the directory `path`, in place of an older one of that name.

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
        save_file(weights, temporary / WEIGHTS, metadata={"format": "pt"})
        torch.save(trainer, temporary / TRAINER)
        manifest = {
            "format": FORMAT,
            **asdict(position),
            "files": {name: _facts(temporary / name) for name in (WEIGHTS, TRAINER)},
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
        manifest = json.loads((path / MANIFEST).read_text())
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


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
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
        trainer = torch.load(path / TRAINER, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can make an unpickler raise almost anything
        raise InputError(
            f"checkpoint {path} cannot be read ({' '.join(str(error).split())[:200]})",
            expected="a checkpoint directory written by this trainer",
        ) from None
    if not isinstance(trainer, dict):
        raise InputError(f"checkpoint {path}", given=type(trainer).__name__, expected="a mapping")
    return weights, trainer


def _manifest_digest(manifest: dict[str, Any]) -> str:
    """SHA-256 over everything in a manifest but this digest itself."""
    rest = {name: value for name, value in manifest.items() if name != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _facts(path: Path) -> dict[str, Any]:
    """SHA-256 and size in bytes of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}
