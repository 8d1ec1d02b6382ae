"""Checkpoints in object storage: copied there after they are on disk, and fetched for a start.

Whatever fsspec knows: s3://, gs://, az://, file://, memory://. A checkpoint is there when its
manifest is, which is written last and deleted first, and good when its digests say so.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Container
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from configs.errors import InputError, one_line
from configs.imports import import_extra
from configs.schema import RunConfig
from configs.visible import visible
from trainer.checkpoints.atomic_files import flush_to_disk, replace_directory
from trainer.checkpoints.checkpoint import MANIFEST, NAME, Refused, step_of, unfinished
from trainer.checkpoints.checkpoint_folder import Good, list_checkpoints, newest_good

log = logging.getLogger("convoy")
RUN_FILES = ("config.yaml", "model.json")
"""Of a run directory: what using its checkpoints takes besides."""
TRIES = 3
PAUSE_SECONDS = 1.0
"""Before the second try; twice as long before each one after it."""
LEAVING_SECONDS = 20.0
"""How long a run that was asked to stop waits for an upload."""


class ObjectStore:
    """The folder of one run in object storage.

    Args:
        url: The folder of runs, `checkpoint.upload`.
        name: The run.

    Raises:
        InputError: If fsspec does not know such a URL, or lacks a package for it.
    """

    def __init__(self, url: str, name: str) -> None:
        fsspec = import_extra("fsspec", "storage")
        try:
            self.files, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise _refused(url, f"{error}. Install that package") from None
        except Exception as error:  # of any of its file systems
            raise _refused(url, one_line(error, named=True)) from None
        self.url = f"{url.rstrip('/')}/{name}"
        self.root = f"{root.rstrip('/')}/{name}"

    def checkpoints(self) -> list[str]:
        """Names of the checkpoints whose manifest is there, oldest step first.

        Raises:
            Exception: Whatever the file system raises that cannot be reached.
        """
        return [n for n in self._folders() if self.files.exists(f"{self._at(n)}/{MANIFEST}")]

    def _folders(self) -> list[str]:
        """Names of what is, or was to be, a checkpoint."""
        self.files.invalidate_cache()
        folder = f"{self.root}/checkpoints"
        if not self.files.exists(folder):
            return []
        found = [str(path).rstrip("/").rpartition("/")[2] for path in self.files.ls(folder, False)]
        return sorted(filter(NAME.fullmatch, found), key=_step)

    def _at(self, name: str) -> str:
        return f"{self.root}/checkpoints/{name}"

    def put(self, checkpoint: Path) -> None:
        """Copy a checkpoint there, its manifest last, and what lies in its run directory."""
        target = self._at(checkpoint.name)
        self.drop(checkpoint.name)  # one that was replaced is not complete until the new one is
        self.files.makedirs(target, exist_ok=True)
        names = sorted(path.name for path in checkpoint.iterdir() if path.name != MANIFEST)
        for name in (*names, MANIFEST):
            self.files.put_file(str(checkpoint / name), f"{target}/{name}")
        for name in RUN_FILES:
            if (checkpoint.parents[1] / name).is_file():
                self.files.put_file(str(checkpoint.parents[1] / name), f"{self.root}/{name}")

    def drop(self, name: str) -> None:
        """Delete a checkpoint, its manifest first."""
        target = self._at(name)
        if self.files.exists(f"{target}/{MANIFEST}"):
            self.files.rm_file(f"{target}/{MANIFEST}")
        if self.files.exists(target):
            self.files.rm(target, recursive=True)

    def get(self, name: str, folder: Path) -> Good:
        """Fetch a checkpoint into a folder of checkpoints, where it appears when it is good.

        Raises:
            Refused: If it does not.
        """
        final = folder / name
        temporary = unfinished(final)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            source = self._at(name)
            self.files.invalidate_cache()
            for path in self.files.ls(source, False):
                own = str(path).rpartition("/")[2]
                self.files.get_file(f"{source}/{own}", str(temporary / own))
                flush_to_disk(temporary / own)
            fetched = Good.at(temporary)
            if fetched.manifest["step"] != step_of(final):
                raise Refused(f"{MANIFEST} is of another step")
            for own in RUN_FILES:
                wanted = folder.parent / own
                if not wanted.exists() and self.files.exists(f"{self.root}/{own}"):
                    self.files.get_file(f"{self.root}/{own}", str(wanted))
            replace_directory(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return fetched._replace(path=final)

    def prune(self, kept: Container[str], *, keep: int) -> None:
        """Delete what is neither among the newest ones nor kept, and what was never completed."""
        complete = self.checkpoints()
        for name in self._folders():
            if name not in kept and name not in complete[-keep:]:
                self.drop(name)

    def set_aside_newer(self, step: int) -> None:
        """Move checkpoints of later steps to `rejected/`: they are of a run that does not go on."""
        for name in self._folders():
            if _step(name) > step:
                target = f"{self.root}/rejected/{name}-{time.time_ns()}"
                self.files.mv(self._at(name), target, recursive=True)


def _step(name: str) -> int:
    return step_of(Path(name))


def _refused(url: str, reason: str) -> InputError:
    return InputError(
        "checkpoint.upload",
        given=url,
        expected="a URL that fsspec knows, such as s3://bucket/runs",
        remedy=f"It says: {' '.join(reason.split())[:200]}.",
    )


def find_store(config: RunConfig) -> ObjectStore | None:
    """Where a run copies its checkpoints to, if it does; see `ObjectStore`."""
    url = config.checkpoint.upload
    return None if url is None else ObjectStore(url, config.name)


def fetch_newer(store: ObjectStore, folder: Path) -> tuple[Good | None, list[str]]:
    """Fetch the newest good checkpoint, if it is newer than every good one on disk.

    Returns:
        As `newest_good` of the folder, with what was fetched.

    Raises:
        InputError: If the store cannot be reached, and there is nothing on disk to go on from.
    """
    local, rejected = newest_good(folder)
    known = step_of(local.path) if local else -1
    try:
        newer = [name for name in store.checkpoints() if _step(name) > known]
    except Exception as error:  # of any of fsspec's file systems
        if local is None:
            raise _refused(store.url, one_line(error, named=True)) from None
        reason = one_line(error, named=True)
        log.warning(f"{visible(store.url)} cannot be reached ({reason}): going on from disk")
        return local, rejected
    for name in reversed(newer):
        try:
            fetched = store.get(name, folder)
            log.info(f"fetched {name} from {visible(store.url)}")
            return fetched, rejected
        except Exception as error:
            log.warning(f"{name} in {visible(store.url)} rejected: {one_line(error, named=True)}")
    return local, rejected


def forget_newer(store: ObjectStore, step: int, *, lenient: bool) -> None:
    """Let no later start take what lies in a store beyond the step that a run begins with.

    Args:
        store: Where checkpoints go.
        step: That the run starts from; -1: from nothing.
        lenient: Whether a store that cannot be reached is only told of: the run goes on from the
            newest that was found.

    Raises:
        InputError: If it cannot be reached.
    """
    try:
        store.set_aside_newer(step)
    except Exception as error:
        if not lenient:
            raise _refused(store.url, one_line(error, named=True)) from None
        log.warning(f"{visible(store.url)} cannot be reached ({one_line(error, named=True)})")


class Uploader:
    """Copies checkpoints to a store in a thread of its own, and deletes old ones there.

    A checkpoint that comes while another is on its way is next; of several that wait, the newest.
    An upload that fails is tried again, then reported; training goes on.

    Args:
        store: Where to.
        keep: How many of the newest checkpoints stay there, besides those that are on disk.
    """

    def __init__(self, store: ObjectStore, keep: int) -> None:
        self.store = store
        self.keep = keep
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload")
        self.pending: Future[None] | None = None
        self.newest: Path | None = None

    def submit(self, checkpoint: Path) -> Path:
        """Begin to upload a checkpoint that is complete; waits for nothing."""
        self.newest = checkpoint
        self.pending = self.thread.submit(self._upload, checkpoint)
        return checkpoint

    def wait(self, seconds: float | None = LEAVING_SECONDS) -> None:
        """Return when everything is there or was given up, or after that time."""
        if self.pending is not None and wait([self.pending], seconds).not_done:
            log.warning(f"{self.newest} is on disk, and not in {visible(self.store.url)} yet")

    def close(self) -> None:
        """Upload what waits, then end the thread."""
        self.wait(None)
        self.thread.shutdown()

    def _upload(self, checkpoint: Path) -> None:
        if checkpoint != self.newest:
            return
        try:
            _with_patience(lambda: self.store.put(checkpoint))
        except Exception as error:  # of any of fsspec's file systems
            if checkpoint == self.newest or checkpoint.exists():  # else deleted in the meantime
                where, reason = visible(self.store.url), one_line(error, named=True)
                log.error(
                    f"{checkpoint.name} was not uploaded to {where} ({reason}); it is on disk, and "
                    "training goes on"
                )
            return
        with contextlib.suppress(Exception):  # the next one tries again
            here = {path.name for path in list_checkpoints(checkpoint.parent)}
            self.store.prune(here | {checkpoint.name}, keep=self.keep)


def _with_patience(work: Callable[[], Any]) -> None:
    """Do it, and again if it fails, `TRIES` times in all."""
    for left in reversed(range(TRIES)):
        try:
            work()
            return
        except Exception:
            if not left:
                raise
            time.sleep(PAUSE_SECONDS * 2 ** (TRIES - 1 - left))
