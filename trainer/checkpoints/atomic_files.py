"""Files, directories and links that are replaced as a whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import functools
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from configs.errors import InputError

log = logging.getLogger("convoy")
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""How a file system says that it has no symbolic links."""
NAME_BYTES = 255
"""Of the longest name of a file."""


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` at the end, if `durable` flushed to disk.

    A reader sees the old content or the new; after an error the old one, and nothing is left over.
    Waiting for the disk takes milliseconds, in which a small network is trained for an epoch.
    A link that lies in its way in a folder of somebody else's is replaced, and not followed.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Replace the content of a file; see `replacing`. Text is written as UTF-8."""
    with replacing(path, durable=durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_output(path: Path, content: str | bytes) -> None:
    """Replace a file that a user asked for; see `write_atomically`.

    Raises:
        InputError: If it cannot be written: the folder is read-only, or the disk full.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> InputError:
    """What to say of a file that an option named."""
    return InputError(
        f"cannot write {path} ({error.strerror})",
        expected="a folder this user may write to, with room in it",
        remedy="Choose another.",
    )


def replace_directory(temporary: Path, final: Path) -> None:
    """Rename a directory to `final`; an older directory of that name is deleted afterwards.

    Where the file system can exchange two names, `final` is there at every moment. Elsewhere a
    process that is killed between two renames leaves `.old-NAME` alone, which
    `recover_directories` renames back.
    """
    old = final.with_name(f".old-{final.name}")
    shutil.rmtree(old, ignore_errors=True)
    if not final.exists():
        temporary.rename(final)
        return
    if exchange(temporary, final):
        shutil.rmtree(temporary, ignore_errors=True)
        return
    final.rename(old)
    try:
        temporary.rename(final)
    except BaseException:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover_directories(folder: Path) -> list[str]:
    """Finish or undo what a killed process left halfway in a folder; nobody else may write to it.

    Returns:
        A line for each directory that has its name again.
    """
    notes = []
    for old in sorted(folder.glob(".old-*")):
        final = old.with_name(old.name.removeprefix(".old-"))
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(final)
            notes.append(f"{final} was being replaced when its process was killed: it is back")
    for unfinished in folder.glob(".writing-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    return notes


def exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two directories in one step; False where that cannot be done.

    Linux only, and not on every file system: https://man7.org/linux/man-pages/man2/rename.2.html
    """
    at_working_directory, rename_exchange = -100, 2
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    source, target = (os.fsencode(path.absolute()) for path in (first, second))
    found: int = rename(at_working_directory, source, at_working_directory, target, rename_exchange)
    return found == 0


def replace_link(link: Path, target: Path) -> None:
    """Make `link` a relative symbolic link to its sibling `target`, in one step.

    Where the file system has none (FAT, some network and object storage), it is a file with the
    name of `target`; `follow` reads either.
    """
    temporary = link.with_name(f".{link.name}-new")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target.name)
        temporary.replace(link)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        _say_once(f"{link.parent} can have no links: latest and best are files with a name in them")
        write_atomically(link, f"{target.name}\n")


@functools.cache
def _say_once(line: str) -> None:
    log.warning(line)


def follow(link: Path) -> Path:
    """The directory that `replace_link` made a path lead to; any other path resolved."""
    if os.path.isfile(link):  # false for what can be no name
        with link.open("rb") as file:
            named = Path(file.read(NAME_BYTES).decode(errors="replace").strip()).name
        if named and link.with_name(named).is_dir():
            return link.with_name(named).resolve()
    return link.resolve()


def flush_to_disk(path: Path) -> None:
    """fsync a file or a directory: a rename that reaches the disk before its data loses both."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(option: str, folder: Path) -> None:
    """Make a folder for what a command writes, if it is not there.

    Raises:
        InputError: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            option, given=str(folder), expected=f"a folder that can be made ({error.strerror})"
        ) from None


def check_output(option: str, path: Path) -> None:
    """Refuse a file that could not be written, before any work goes into it.

    Args:
        option: The option that names it, for the message.
        path: The file.

    Raises:
        InputError: If its folder is not there or not writable, or it is a folder itself.
    """
    if path.is_dir():
        raise InputError(option, given=str(path), expected="a file, not a folder")
    if not path.parent.is_dir():
        raise InputError(option, given=str(path), expected="a file in a folder that exists")
    if not os.access(path.parent, os.W_OK):
        raise InputError(option, given=str(path), expected="a folder this user may write to")
