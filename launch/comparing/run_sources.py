"""What a user names on the command line -> runs: folders, patterns, offline and W&B paths."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from configs.errors import InputError
from launch.comparing.followed_run import is_run_directory, read_run_directory
from launch.comparing.run_record import RunRecord
from launch.comparing.wandb_api import read_wandb_project, read_wandb_run
from launch.comparing.wandb_offline import find_wandb_files, read_offline

WANDB_PATH = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)?")
KINDS = (
    "a run directory, the folder of a sweep, a pattern in quotes, an offline W&B directory, or a "
    "W&B path (entity/project/run_id or entity/project)"
)


def read_runs(
    names: Sequence[str], *, group: str | None = None, tag: str | None = None
) -> tuple[list[RunRecord], list[str]]:
    """Read everything that is named, each once, in the order given.

    Args:
        names: What the user wrote.
        group: Of a W&B project, only the runs of this group.
        tag: Of a W&B project, only the runs with this tag.

    Returns:
        The runs, and a note for each folder that a pattern found but that holds no run yet, and
        for each run that is empty or broken.

    Raises:
        InputError: For a name that means nothing, or if no run is left.
    """
    runs: list[RunRecord] = []
    notes: list[str] = []
    unusable: list[InputError] = []
    offline: list[Path] = []
    filtered = False
    for name in dict.fromkeys(names):
        if _exists(name):
            path = Path(name).expanduser()
            try:
                offline += _read_path(path, runs)
            except InputError as error:
                if not is_run_directory(path):
                    raise
                unusable.append(error)
        elif glob.has_magic(name):
            offline += _read_pattern(name, runs, notes)
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
    if unusable and not runs:
        raise unusable[0]
    unique = {run.source: run for run in runs}
    return list(unique.values()), [*notes, *(f"left out: {error}" for error in unusable)]


def _exists(name: str) -> bool:
    return Path(name).expanduser().exists()


def _read_path(path: Path, runs: list[RunRecord]) -> list[Path]:
    """Read a run directory; return the .wandb files of an offline one, to be read together."""
    if path.is_dir() and is_run_directory(path):
        runs.append(read_run_directory(path))
        return []
    if files := find_wandb_files(path):
        return files
    if (path / "trials.json").is_file():  # a sweep
        return _read_trials(path, runs)
    inside = path.is_dir() and any(is_run_directory(folder) for folder in path.iterdir())
    raise InputError(
        f"{path} is not a run",
        expected=KINDS,
        remedy=f"For the runs in it, give '{path}/*' in quotes." if inside else "",
    )


def _read_trials(folder: Path, runs: list[RunRecord]) -> list[Path]:
    """Every trial of a sweep that has recorded something, in the order of their numbers."""
    trials = [path for path in folder.glob("trial_*") if (path / "metrics.jsonl").is_file()]
    trials.sort(key=lambda path: (len(path.name), path.name))
    runs += [read_run_directory(path) for path in trials if (path / "metrics.jsonl").stat().st_size]
    return []


def _read_pattern(pattern: str, runs: list[RunRecord], notes: list[str]) -> list[Path]:
    """Every run that a pattern finds; folders without one are named in a note."""
    paths = [Path(found) for found in sorted(glob.glob(str(Path(pattern).expanduser())))]
    before, files, skipped = len(runs), [], []
    for path in paths:
        try:
            files += _read_path(path, runs)
        except InputError as error:
            skipped.append(f"left out: {error}")
    if len(runs) == before and not files:
        raise InputError(f"no runs match {pattern!r}", expected=KINDS, remedy=" ".join(skipped[:3]))
    notes += skipped
    return files


def _wandb_path(name: str) -> str:
    """entity/project or entity/project/run_id, from that or from the address of a page."""
    path = re.sub(r"^https?://[^/]+/", "", name).strip("/")
    path = re.sub(r"^([^/]+/[^/]+)/runs/", r"\1/", path)
    is_local = name.startswith((".", "~", "/")) or Path(path).parent.parts[:1] == ()
    inside = not is_local and Path(Path(path).parts[0]).is_dir()
    if is_local or inside or WANDB_PATH.fullmatch(path) is None:
        raise InputError(f"there is no run at {name!r}", expected=KINDS)
    return path
