"""What a kill left half-written in the cache of torch.compile: taken out, and compiled again.

Files there are named by a hash of what they were made from, so that every later start would find
the same broken one.
"""

from __future__ import annotations

import functools
import logging
import re
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from traceback import walk_tb
from typing import Any, TypeVar

import torch

log = logging.getLogger("convoy")
T = TypeVar("T")
KEY = re.compile(r"\bc[a-z2-7]{51}\b")
"""The name of an entry, as inductor makes it."""
UNLOADABLE = (ImportError, OSError, SyntaxError, AttributeError, NameError, EOFError)
"""What comes of loading half a library or half a module."""


def cache_folder() -> Path:
    """Where torch.compile keeps what it made, for this user and all runs."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir())


def drop_damaged(folder: Path) -> int:
    """Remove what was written halfway, before anybody looks: loading half a library may end the
    process (SIGBUS), and half of a backward pass would be found in the middle of a step.

    What somebody is writing just now is left alone: its lock is held. Returns how many.
    """
    from filelock import FileLock, Timeout

    dropped = 0
    for path in (*folder.glob("*/*.so"), *folder.glob("*/c*.py")):
        if _is_whole(path):
            continue
        try:
            with FileLock(folder / "locks" / f"{path.name.partition('.')[0]}.lock", timeout=0):
                if not _is_whole(path):
                    path.unlink(missing_ok=True)
                    dropped += 1
        except (OSError, Timeout):
            continue  # somebody else's, or being written
    if dropped:
        log.warning(
            f"{dropped} half-written files in the cache of torch.compile ({folder}) were removed: "
            "they are compiled again"
        )
    return dropped


def _is_whole(path: Path) -> bool:
    try:
        if path.suffix == ".so":
            with path.open("rb") as file:
                return _is_whole_library(file.read(64), path.stat().st_size)
        return _is_whole_script(path.read_bytes(), path.stem)
    except OSError:
        return True


def _is_whole_library(head: bytes, size: int) -> bool:
    """Whether an ELF file is as long as its header says; of other formats, whether it is empty."""
    if len(head) < 64 or head[:5] != b"\x7fELF\x02":
        return size > 0 and head[:1] != b"\x7f"
    (table,) = struct.unpack_from("<Q", head, 40)
    entry_size, entries = struct.unpack_from("<HH", head, 58)
    return bool(table) and size >= table + entry_size * entries


def _is_whole_script(content: bytes, name: str) -> bool:
    """Whether a script has the hash that it is named by, or ends as one does at least."""
    from torch._inductor.codecache import code_hash

    if code_hash(content.strip()) == name:
        return True
    try:
        compile(content, name, "exec")
    except (SyntaxError, ValueError):
        return False
    return content.endswith(b"\n")


def recovering(call: Callable[..., T]) -> Callable[..., T]:
    """A compiled callable that clears a cache entry which cannot be loaded, once, and goes on."""
    began, cleared = time.time(), set[str]()

    @functools.wraps(call, updated=())
    def attempt(*args: Any, **kwargs: Any) -> T:
        while True:
            try:
                return call(*args, **kwargs)
            except Exception as error:
                broken = _entries(error, began) if _is_unloadable(error) else {}
                if not broken or broken.keys() <= cleared:
                    raise
                cleared.update(broken)
                _clear(broken)

    return attempt


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_unloadable(error: BaseException) -> bool:
    return any(isinstance(part, UNLOADABLE) for part in _chain(error))


def _entries(error: BaseException, began: float) -> dict[str, list[Path]]:
    """Files of the entries that an error names, by name, but those made since this start: another
    rank has repaired them."""
    said = [str(part) for part in _chain(error)]
    frames = (frame for part in _chain(error) for frame, _ in walk_tb(part.__traceback__))
    keys = set(KEY.findall("\n".join([*said, *(frame.f_code.co_filename for frame in frames)])))
    found: dict[str, list[Path]] = {}
    for key in keys:
        for path in cache_folder().glob(f"{key[1:3]}/{key}.*"):
            if path.stat().st_mtime < began:
                found.setdefault(key, []).append(path)
    return found


def _clear(broken: dict[str, list[Path]]) -> None:
    from torch._inductor.utils import clear_caches

    for path in (path for found in broken.values() for path in found):
        path.unlink(missing_ok=True)
    log.warning(
        f"the cache of torch.compile held a file that cannot be loaded "
        f"({', '.join(f'{key[:9]}...' for key in broken)} in {cache_folder()}): it was removed, "
        "and is compiled again"
    )
    clear_caches()
    forget_graphs()


def forget_graphs() -> None:
    """Compile everything anew from here on. Whoever listens to the compiler goes on to do so."""
    from torch._dynamo.callback import callback_handler

    listeners = [*callback_handler.start_callbacks], [*callback_handler.end_callbacks]
    torch._dynamo.reset()
    callback_handler.start_callbacks.extend(listeners[0])
    callback_handler.end_callbacks.extend(listeners[1])
