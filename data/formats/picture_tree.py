"""The pictures below a folder: which are read, in an order that depends on names only, and what is
left out and why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from configs.imports import import_extra

ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".ppm", ".pgm", ".pbm",
    ".pnm", ".tif", ".tiff", ".gif", ".avif", ".jp2", ".j2k", ".tga", ".pcx", ".ico",
)  # fmt: skip
"""Of pictures that Pillow can open; some depend on what it was built with."""
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "lost+found", "System Volume Information", "$RECYCLE.BIN")
LINKED = "link to a folder that is read already"
HIDDEN = "hidden"


def readable_endings() -> tuple[str, ...]:
    """Those of `ENDINGS` that this Pillow opens."""
    pillow = import_extra("PIL.Image", "images")
    known = pillow.registered_extensions()
    return tuple(ending for ending in ENDINGS if known.get(ending) in pillow.OPEN)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is there for a program's sake: `.git`, `.ipynb_checkpoints`, ..."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name))


def find_pictures(
    folder: Path, name: str, endings: tuple[str, ...]
) -> tuple[list[bytes], Counter[str]]:
    """The pictures of a class, its subfolders and the folders that links lead to included.

    A folder is read once, whatever leads to it: a link back to the class, or to a folder above it,
    adds nothing.

    Args:
        folder: What the paths are relative to.
        name: The folder of the class in it.
        endings: Of the files that are read.

    Returns:
        The paths, sorted, and how many files and folders were left out for which reason.
    """
    found: list[bytes] = []
    left_out: Counter[str] = Counter()
    for subfolder in _folders(folder / name, left_out):
        inner = os.path.relpath(subfolder, folder)
        for file in os.scandir(subfolder):
            ending = os.path.splitext(file.name)[1].lower()
            if file.is_dir():
                continue
            if is_hidden(file.name):
                left_out[HIDDEN] += 1
            elif ending in endings:
                found.append(os.fsencode(os.path.join(inner, file.name)))
            else:
                left_out[ending or "no ending"] += 1
    return sorted(found), left_out


def _folders(start: Path, left_out: Counter[str]) -> Iterator[Path]:
    """`start` and the folders below it: those that lie there first, then those that links lead
    to."""
    real = Path(os.path.realpath(start))
    seen = {_identity(above) for above in (*real.parents, *start.absolute().parents)}
    links = [start]
    while links:
        top = links.pop(0)
        if _identity(top) in seen:
            left_out[LINKED] += 1
            continue
        for at, names, _ in os.walk(top):
            seen.add(_identity(Path(at)))
            hidden = [name for name in names if is_hidden(name)]
            left_out.update([HIDDEN] * len(hidden))
            below = [Path(at, name) for name in sorted(set(names) - set(hidden))]
            links += [path for path in below if path.is_symlink()]
            names[:] = [path.name for path in below if not path.is_symlink()]
            yield Path(at)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
