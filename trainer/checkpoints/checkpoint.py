"""Checkpoints on disk: written atomically, verified by digest, pruned last."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.errors import InputError

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
    """The config keys that define the run, flat."""
    best_step: int = 0
    """Step of the best evaluation so far, 0 without one."""
    score: float | None = None
    """What `evaluate.best` said of these weights, negated where less is better; None: nothing."""


class Refused(ValueError):
    """A checkpoint that does not verify, and why."""


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint directories, oldest step first; nothing else that lies there."""
    found = [path for path in folder.glob("step_*") if NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def save_checkpoint(
    folder: Path,
    weights: dict[str, Tensor],
    trainer: dict[str, Any],
    position: Position,
    *,
    keep: int,
    keep_best: int = 1,
    is_best: bool,
) -> Path:
    """Publish one checkpoint under `folder`, point `latest` (and `best`) at it, then prune.

    The files are written to a temporary directory, flushed to disk and renamed, so a directory
    called step_NNNNNNNN is whole or is not there.

    Raises:
        OSError: If the disk is full or gone; earlier checkpoints are as they were.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    final = folder / folder_name(position.step)
    temporary = folder / f".writing-{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        save_file(weights, temporary / WEIGHTS, metadata={"format": "pt"})
        torch.save(trainer, temporary / TRAINER)
        files = {name: _facts(temporary / name) for name in (WEIGHTS, TRAINER)}
        manifest = {
            "format": FORMAT,
            **asdict(position),
            "files": files,
            "torch": torch.__version__,
            "saved_at": time.time(),
        }
        manifest["manifest_sha256"] = _manifest_digest(manifest)
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        for path in (*temporary.iterdir(), temporary):
            _flush(path)
        _replace_directory(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _point(folder / "latest", final)
    if is_best:
        _point(folder / "best", final)
    _flush(folder)
    _prune(folder, keep, keep_best)
    return final


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are all there with the right digests.

    Raises:
        Refused: With the reason.
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
    """Weights and trainer state of a verified checkpoint; never executes code.

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


def newest_good(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a line for each newer one that does not."""
    rejected = []
    for path in reversed(list_checkpoints(folder)):
        try:
            verify_checkpoint(path)
        except Refused as reason:
            rejected.append(f"checkpoint {path} rejected: {reason}")
            continue
        return path, rejected
    return None, rejected


def set_aside_newer(folder: Path, chosen: Path) -> None:
    """Move what is newer than the checkpoint that is continued to `rejected/`.

    The run writes those steps again; left in place they would count as the newest ones.
    """
    chosen, folder = chosen.resolve(), folder.resolve()
    newer = [path for path in list_checkpoints(folder) if step_of(path) > step_of(chosen)]
    for path in newer:
        (folder / "rejected").mkdir(exist_ok=True)
        target = folder / "rejected" / f"{path.name}-{time.time_ns()}"
        path.rename(target)
    _point(folder / "latest", chosen)
    best = folder / folder_name(verify_checkpoint(chosen)["best_step"])
    if best.exists():
        _point(folder / "best", best)
    else:
        (folder / "best").unlink(missing_ok=True)


def _manifest_digest(manifest: dict[str, Any]) -> str:
    """SHA-256 over everything in a manifest but this digest itself."""
    rest = {name: value for name, value in manifest.items() if name != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def _flush(path: Path) -> None:
    """fsync a file or a directory: a rename that reaches the disk before its data loses both."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace_directory(temporary: Path, final: Path) -> None:
    """Rename over an older checkpoint of the same step, if there is one."""
    old = final.with_name(f".old-{final.name}")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    try:
        temporary.rename(final)
    except BaseException:
        if old.exists():
            old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _point(link: Path, target: Path) -> None:
    """Make `link` a relative symbolic link to a sibling, in one atomic step."""
    temporary = link.with_name(f".{link.name}-new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(link)


def _prune(folder: Path, keep: int, keep_best: int) -> None:
    best = folder / "best"
    kept = {best.resolve()} if best.exists() else set()
    found = list_checkpoints(folder)
    if keep_best > 1:
        scores = {path: _score(path) for path in found}
        ranked = sorted(
            (path for path in found if scores[path] > -math.inf), key=scores.__getitem__
        )
        kept |= {path.resolve() for path in ranked[-keep_best:]}
    for path in found[:-keep]:
        if path.resolve() not in kept:
            shutil.rmtree(path)


def _score(path: Path) -> float:
    """What its manifest says; whether its files are whole does not matter here."""
    try:
        score = json.loads((path / MANIFEST).read_text())["score"]
        return -math.inf if score is None else float(score)
    except (OSError, ValueError, KeyError, TypeError):
        return -math.inf
