"""OUTPUT_DIR/NAME/: what lies in it, whether it is continued, and who may write to it."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import torch

from configs.errors import InputError
from configs.identity import digest, flatten, identity, nest
from configs.schema import RunConfig
from data.facts import InputFacts
from trainer.checkpoints.atomic_files import replacing
from trainer.checkpoints.checkpoint import (
    Refused,
    list_checkpoints,
    newest_good,
    set_aside_newer,
    verify_checkpoint,
)
from trainer.ranks.runtime import Runtime

PACKAGES = ("torch", "numpy", "safetensors", "jsonargparse", "rich", "wandb", "accelerate")
LOCK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Resume:
    """What a run starts from."""

    checkpoint: Path | None
    step: int
    notes: list[str]
    """Lines for the log: rejected checkpoints, an older run moved aside."""


class RunDirectory:
    """The files of one run. Only rank 0 writes them."""

    def __init__(self, config: RunConfig) -> None:
        self.path = Path(config.output_dir).expanduser() / config.name
        self.checkpoints = self.path / "checkpoints"
        self.lock: TextIO | None = None
        self.identity = identity(config)
        self.digest = digest(config)

    def decide_resume(self, config: RunConfig) -> Resume:
        """Find what to continue from; changes nothing on disk.

        Raises:
            InputError: If an explicit path is wrong, no checkpoint verifies, or the unfinished run
                in this directory is another one.
        """
        mode = config.checkpoint.resume
        if mode == "never":
            return Resume(None, 0, [])
        if mode != "auto":
            return self._explicit(Path(mode).expanduser())
        chosen, rejected = newest_good(self.checkpoints)
        if chosen is None:
            if rejected:
                raise InputError(
                    f"no checkpoint in {self.checkpoints} can be trusted ({'; '.join(rejected)})",
                    expected="one that verifies",
                    remedy="Use --checkpoint.resume never to start afresh; the old files are kept.",
                )
            return Resume(None, 0, [])
        manifest = verify_checkpoint(chosen)
        changed = _differences(manifest["identity"], identity(config))
        if not changed:
            return Resume(chosen, manifest["step"], rejected)
        if self.status() == "completed":
            return Resume(None, 0, [f"{self.path} holds a finished run with {changed}"])
        raise InputError(
            f"{self.path} holds an unfinished run with another config ({changed})",
            expected="the same config to continue it",
            remedy="Choose another --name; or --checkpoint.resume never to start afresh (the old "
            f"run is moved aside); or --checkpoint.resume {self.path} to continue it as changed.",
        )

    def claim(self) -> None:
        """Make sure that no other process decides about this directory or writes to it.

        Raises:
            InputError: If one does, or the folder above cannot be written.
        """
        if self.lock is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._take_lock()
            except OSError as error:
                raise self.unwritable(error) from None

    def open(self, config: RunConfig, resume: Resume) -> list[str]:
        """Make the directory ready for the run; returns lines for the log.

        Raises:
            InputError: If the directory cannot be written, or another process is writing to it.
        """
        self.claim()
        try:
            notes = list(resume.notes)
            inside = resume.checkpoint is not None and resume.checkpoint.parent.resolve() == (
                self.checkpoints.resolve()
            )
            if inside and resume.checkpoint is not None:
                set_aside_newer(self.checkpoints, resume.checkpoint.resolve())
            elif list_checkpoints(self.checkpoints) or self.status() is not None:
                notes.append(f"the earlier run was moved to {self._move_aside()}")
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / "config.yaml", _yaml(config))
        except OSError as error:
            raise self.unwritable(error) from None
        return notes

    def status(self) -> str | None:
        """Status in summary.json, None without one."""
        try:
            found = json.loads((self.path / "summary.json").read_text())["status"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return str(found)

    def write_environment(self, environment: dict[str, Any]) -> None:
        write_atomically(
            self.path / "environment.json", json.dumps(environment, indent=2, default=str) + "\n"
        )

    def write_model(self, facts: InputFacts) -> None:
        """What using the model takes besides the config and the weights (inference/trained.py)."""
        write_atomically(self.path / "model.json", json.dumps(facts.to_json(), indent=2) + "\n")

    def write_summary(self, summary: dict[str, Any]) -> None:
        last = summary["status"] != "running"  # others follow soon
        content = json.dumps(summary, indent=2) + "\n"
        write_atomically(self.path / "summary.json", content, durable=last)

    def _explicit(self, given: Path) -> Resume:
        """A checkpoint directory, or a run directory, whose newest good checkpoint is meant."""
        path = given.resolve()
        rejected: list[str] = []
        if (path / "checkpoints").is_dir():
            newest, rejected = newest_good(path / "checkpoints")
            path = newest or path
        try:
            return Resume(path, verify_checkpoint(path)["step"], rejected)
        except Refused as reason:
            raise InputError(
                "checkpoint.resume",
                given=str(given),
                expected="auto, never, or the path of a checkpoint or run directory",
                remedy=f"It was refused because {'; '.join([*rejected, str(reason)])}.",
            ) from None

    def unwritable(self, error: OSError) -> InputError:
        return InputError(
            f"cannot write to {self.path} ({error.strerror})",
            expected="a folder this user may write to",
            remedy="Choose another with --output_dir.",
        )

    def _take_lock(self) -> None:
        """Hold OUTPUT_DIR/.NAME.lock while this process lives; a kill releases it."""
        lock = (self.path.parent / f".{self.path.name}.lock").open("w")
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.lock = lock
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise InputError(
                        f"another process is training in {self.path}",
                        expected="one run per directory",
                        remedy="Wait for it, stop it, or choose another --name.",
                    ) from None
                time.sleep(0.2)

    def _move_aside(self) -> Path:
        number = 1
        while (target := self.path.with_name(f"{self.path.name}.{number}")).exists():
            number += 1
        self.path.rename(target)
        return target


def write_atomically(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Replace a file as a whole: a reader sees the old content or the new."""
    with replacing(path, durable=durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def describe_machine() -> dict[str, Any]:
    """Code, versions and hardware: what a figure measured here must be read with."""
    root = Path(__file__).resolve().parents[2]
    gpus = torch.cuda.device_count()
    return {
        "git_commit": _git(root, "rev-parse", "HEAD"),
        "git_dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [torch.cuda.get_device_name(index) for index in range(gpus)],
    }


def describe_environment(runtime: Runtime) -> dict[str, Any]:
    """What a later reader needs to know about how this run was executed."""
    return describe_machine() | {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started_at": time.time(),
        "host": socket.gethostname(),
        "launcher": runtime.launcher,
        "world_size": runtime.world_size,
        "backend": runtime.backend or None,
        "device": runtime.device.type,
        "threads": torch.get_num_threads(),
    }


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """`optimizer.lr 0.001, now 0.0003; ...` for every key whose value changed."""
    normal = json.loads(json.dumps(new, default=str))
    return "; ".join(
        f"{key} {old.get(key)!r}, now {normal.get(key)!r}"
        for key in dict.fromkeys([*normal, *old])
        if old.get(key) != normal.get(key)
    )


def _yaml(config: RunConfig) -> str:
    import yaml

    return yaml.safe_dump(nest(flatten(config)), sort_keys=False)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        found = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
