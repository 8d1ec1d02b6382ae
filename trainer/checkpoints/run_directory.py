"""A run directory, OUTPUT_DIR/NAME/: what lies in it, and who may write to it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from configs.errors import InputError
from configs.identity import digest, flatten, identity, nest
from configs.read_files import read_json
from configs.schema import RunConfig
from data.facts import InputFacts
from data.lock_file import lock_of
from data.vocabulary import TOKENIZER
from trainer.checkpoints.atomic_files import recover_directories, write_atomically
from trainer.checkpoints.checkpoint_folder import list_checkpoints, restore_links, set_aside_newer
from trainer.ranks.failures import RunFailed

log = logging.getLogger("convoy")
LOCK_SECONDS = 10.0
CONFIG, ENVIRONMENT = "config.yaml", "environment.json"


@dataclass(frozen=True, slots=True)
class Resume:
    """What a run starts from."""

    checkpoint: Path | None
    """The directory of a verified checkpoint; None for a fresh start."""
    step: int
    """Optimizer steps taken at that point."""
    notes: list[str]
    """Lines for the log: rejected checkpoints, an older run moved aside."""
    facts: InputFacts | None = None
    """What the weights know of their inputs, if the run that saved them had the same data."""
    best_step: int = 0
    """Step of the best evaluation until then, 0 without one."""


class RunDirectory:
    """The files of one run. Only rank 0 writes them."""

    def __init__(self, config: RunConfig) -> None:
        self.path = Path(config.output_dir).expanduser() / config.name
        self.checkpoints = self.path / "checkpoints"
        self.lock: TextIO | None = None
        self.identify(config)

    def identify(self, config: RunConfig) -> None:
        """Take over what was found out since: a batch that fits, the digest of weights given."""
        self.identity = identity(config)
        self.digest = digest(config)

    def claim(self) -> None:
        """Lock the directory against every other process, for as long as this one lives.

        What a killed process left halfway in it is finished or undone.

        Raises:
            InputError: If another process holds the lock, OUTPUT_DIR cannot be written, or NAME is
                a link that leads nowhere.
        """
        if self.lock is None:
            if os.path.islink(self.path) and not os.path.exists(self.path):
                raise InputError(
                    str(self.path),
                    given=f"a link to {self.path.readlink()}",
                    expected="a folder that is there",
                    remedy="Make it, or mount its disk, or remove the link.",
                )
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._take_lock()
                notes = recover_directories(self.checkpoints) + restore_links(self.checkpoints)
                for note in notes:
                    log.warning(note)
            except OSError as error:
                raise self.unwritable(error) from None

    def release(self) -> None:
        """Let another run claim the directory."""
        if self.lock is not None:
            fcntl.flock(self.lock, fcntl.LOCK_UN)  # closing would not: workers have it open, too
            self.lock.close()
            self.lock = None

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
                set_aside_newer(self.checkpoints, resume.checkpoint, resume.best_step)
            elif list_checkpoints(self.checkpoints) or self.status() is not None:
                notes.append(f"the earlier run was moved to {self._move_aside()}")
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / CONFIG, _yaml(config))
        except OSError as error:
            raise self.unwritable(error) from None
        return notes

    def status(self) -> str | None:
        """The status in summary.json; None if there is no readable one."""
        try:
            found = read_json(self.path / "summary.json")["status"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return str(found)

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Write environment.json; see `environment.describe_environment`."""
        write_atomically(
            self.path / ENVIRONMENT, json.dumps(environment, indent=2, default=str) + "\n"
        )

    def write_model(self, facts: InputFacts, found: dict[str, Any]) -> None:
        """Write model.json: what using the model takes besides the config and the weights, and what
        was found in the data."""
        content = json.dumps(facts.to_json() | {"data": found}, indent=2) + "\n"
        if facts.vocabulary is not None and facts.vocabulary.file:
            write_atomically(self.path / TOKENIZER, facts.vocabulary.file)
        write_atomically(self.path / "model.json", content)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json; while the run goes on without waiting for the disk.

        Raises:
            OSError: If the disk refuses it. The last one then takes the room of the one before,
                which said that the run goes on.
        """
        last = summary["status"] != "running"  # others follow soon
        path, content = self.path / "summary.json", json.dumps(summary, indent=2) + "\n"
        try:
            write_atomically(path, content, durable=last)
        except OSError:
            if not last:
                raise
            with path.open("r+b") as file:
                file.write(content.encode())
                file.truncate()

    def check_there(self) -> None:
        """Fail if the directory is not there any more: nobody would find what goes into it.

        Raises:
            RunFailed: If it was deleted, moved or replaced since it was opened.
        """
        with contextlib.suppress(OSError):  # a file system that does not answer may come back
            if not (self.path / CONFIG).exists():
                raise RunFailed(
                    f"the run directory {self.path} was deleted, moved or replaced while the run "
                    "went on, and what it had saved with it"
                )

    def unwritable(self, error: OSError) -> InputError:
        """The refusal to raise after an error of the file system in this directory."""
        if error.errno == errno.ENAMETOOLONG:
            return InputError(
                "name",
                given=self.path.name,
                expected="one that the file system takes with 6 bytes more: often 249 bytes",
                remedy="Choose a shorter --name.",
            )
        return InputError(
            f"cannot write to {self.path} ({error.strerror})",
            expected="a folder this user may write to",
            remedy="Choose another with --output_dir.",
        )

    def _take_lock(self) -> None:
        """Hold OUTPUT_DIR/.NAME.lock while this process lives; a kill releases it."""
        lock = lock_of(self.path)
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
        """Rename the directory to NAME.1, or the next number that is free.

        A link to it stays, and leads to an empty directory: on the disk that was chosen for it.
        """
        path = self.path.resolve()
        number = 1
        while (target := path.with_name(f"{path.name}.{number}")).exists():
            number += 1
        path.rename(target)
        if self.path.is_symlink():
            path.mkdir()
        return target


def _yaml(config: RunConfig) -> str:
    import yaml

    return yaml.safe_dump(nest(flatten(config)), sort_keys=False)
