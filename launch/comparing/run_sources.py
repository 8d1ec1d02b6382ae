"""What a user names on the command line -> runs: folders, patterns, offline and W&B paths."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from configs.errors import InputError, closest_run
from launch.comparing.followed_run import is_run_directory, read_run_directory
from launch.comparing.run_record import RunRecord
from launch.comparing.wandb_api import read_wandb_project, read_wandb_run
from launch.comparing.wandb_offline import find_wandb_files, read_offline

WANDB_PATH = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)?")
KINDS = (
    "a run directory, a folder of runs such as a sweep, a pattern in quotes, an offline W&B "
    "directory, or a W&B path (entity/project/run_id or entity/project)"
)
DEEPEST = 3
"""Folders below the one named: runs/NAME, a sweep's runs/SWEEP/trial_0, and one more."""


def read_runs(
    names: Sequence[str], *, group: str | None = None, tag: str | None = None
) -> tuple[list[RunRecord], list[str]]:
    """Read everything that is named, each once, in the order given.

    Args:
        names: What the user wrote.
        group: Of a W&B project, only the runs of this group.
        tag: Of a W&B project, only the runs with this tag.

    Returns:
        The runs, and a note on what is there but cannot be compared: runs that are empty or
        broken, and whatever is no run.

    Raises:
        InputError: For a name that means nothing, or if no run is left.
    """
    runs: list[RunRecord] = []
    broken: list[InputError] = []
    strays: list[Path] = []
    offline: list[Path] = []
    filtered = False
    for name in dict.fromkeys(names):
        if paths := _paths(name):
            for path in paths:
                files = [] if is_run_directory(path) else find_wandb_files(path)
                inside = [] if files else list(run_directories(path, DEEPEST))
                offline += files
                strays += [] if inside or files else [path]
                for directory in inside:
                    try:
                        runs.append(read_run_directory(directory))
                    except InputError as error:
                        broken.append(error)
        elif glob.has_magic(name):
            raise InputError(f"no runs match {name!r}", expected=KINDS)
        else:
            address = _wandb_path(name)
            if address.count("/") == 2:
                runs.append(read_wandb_run(address))
            else:
                runs += read_wandb_project(address, group=group, tag=tag)
                filtered = True
    if (group is not None or tag is not None) and not filtered:
        raise InputError(
            "--filter-group and --filter-tag", expected="a W&B project (entity/project) to filter"
        )
    runs += read_offline(list(dict.fromkeys(offline))) if offline else []
    if not runs:
        raise broken[0] if broken else InputError(f"{strays[0]} is not a run", expected=KINDS)
    notes = [f"left out: {error}" for error in broken]
    notes += [f"left out, because no run is there: {', '.join(map(str, strays))}"] if strays else []
    return list({run.source: run for run in runs}.values()), notes


def run_directories(folder: Path, deepest: int) -> Iterator[Path]:
    """A run directory itself, or those in a folder, sorted by name; links are not followed down."""
    try:
        if is_run_directory(folder):
            yield folder
        elif deepest > 0:
            for path in sorted(folder.iterdir()):
                inside = path.is_dir() and path.name != "wandb" and not path.name.startswith(".")
                if inside and (not path.is_symlink() or is_run_directory(path)):
                    yield from run_directories(path, deepest - 1)
    except OSError:  # gone meanwhile, not to be read, or a file
        return


def _paths(name: str) -> list[Path]:
    """What is there under a name or a pattern."""
    path = Path(name).expanduser()
    return (
        [path] if os.path.exists(path) else [Path(found) for found in sorted(glob.glob(str(path)))]
    )


def _wandb_path(name: str) -> str:
    """entity/project or entity/project/run_id, from that or from the address of a page."""
    path = re.sub(r"^https?://[^/]+/", "", name).strip("/")
    path = re.sub(r"^([^/]+/[^/]+)/runs/", r"\1/", path)
    is_local = name.startswith((".", "~", "/")) or Path(path).parent.parts[:1] == ()
    inside = not is_local and Path(Path(path).parts[0]).is_dir()
    if is_local or inside or WANDB_PATH.fullmatch(path) is None:
        raise InputError(f"there is no run at {name!r}", expected=KINDS, remedy=closest_run(name))
    return path
