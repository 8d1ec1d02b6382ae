"""The checkpoints of one run side by side: publishing, finding the newest good one, pruning."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from configs.read_files import read_json
from trainer.checkpoints.atomic_files import flush_to_disk, follow, replace_link
from trainer.checkpoints.checkpoint import (
    MANIFEST,
    NAME,
    Position,
    Refused,
    folder_name,
    step_of,
    verify_checkpoint,
    verify_numbers,
    write_checkpoint,
    write_parts,
)
from trainer.checkpoints.checkpoint_parts import Part


class Good(NamedTuple):
    """A checkpoint that verifies and holds no NaN.

    Its files are read once to find that out. Whoever takes it from here has this at hand and need
    not ask again: between asking and loading they could change as well as between asking twice,
    and loading executes none of their content.
    """

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def at(cls, path: Path) -> Good:
        """The checkpoint in a directory.

        Raises:
            Refused: If it is not good.
        """
        manifest = verify_checkpoint(path)
        verify_numbers(path, manifest)
        return cls(path, manifest)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint directories in a folder, oldest step first; nothing else that lies there."""
    found = [path for path in folder.glob("step_*") if NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


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

    Args:
        folder: The folder of the run's checkpoints, made if it is not there.
        weights: The weights under their names in the state dict, in host memory.
        trainer: Everything else that continues the run, in host memory.
        position: Where in its run the checkpoint stands.
        keep: Number of newest checkpoints that stay.
        keep_best: Number of checkpoints of the highest score that stay too.
        is_best: Whether its evaluation is the best one so far.

    Returns:
        The directory of the checkpoint.

    Raises:
        OSError: If the disk is full or gone; earlier checkpoints are as they were.
    """
    folder.mkdir(exist_ok=True)  # without parents: a run directory that was deleted stays so
    final = folder / folder_name(position.step)
    write_checkpoint(final, weights, trainer, position)
    _announce(final, keep, keep_best, is_best=is_best)
    return final


def save_parts(
    folder: Path,
    part: Part,
    trainer: dict[str, Any],
    position: Position,
    *,
    keep: int,
    keep_best: int = 1,
    is_best: bool,
    seconds: float,
) -> Path:
    """The same of a checkpoint of which every rank writes a part; see `write_parts`.

    Every rank calls it, after rank 0 has called `checkpoint_parts.prepare_folder`.
    """
    final = folder / folder_name(position.step)
    write_parts(final, part, trainer, position, seconds=seconds)
    if part.rank == 0:
        _announce(final, keep, keep_best, is_best=is_best)
    return final


def _announce(final: Path, keep: int, keep_best: int, *, is_best: bool) -> None:
    """Point links at a new checkpoint, and delete what is not kept any more."""
    folder = final.parent
    replace_link(folder / "latest", final)
    if is_best:
        replace_link(folder / "best", final)
    flush_to_disk(folder)
    _prune(folder, keep, keep_best)


def newest_good(folder: Path) -> tuple[Good | None, list[str]]:
    """The newest good checkpoint, None if there is none; and a line for each newer one that was
    rejected."""
    rejected: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return Good.at(path), rejected
        except Refused as reason:
            rejected.append(f"checkpoint {path} rejected: {reason}")
    return None, rejected


def restore_links(folder: Path) -> list[str]:
    """Make links again of `latest` and `best` where a copy of the run has followed them, as those
    of `scp -r` and `cp -L` do; nobody else may write to the folder.

    Returns:
        A line for each of them.
    """
    notes = []
    for link in (folder / "latest", folder / "best"):
        if link.is_symlink() or not link.is_dir():
            continue
        try:
            final = folder / folder_name(int(read_json(link / MANIFEST)["step"]))
        except (OSError, ValueError, KeyError, TypeError):
            final = link
        moved = _set_aside(link) if final.exists() else link.rename(final)
        if final.exists():
            replace_link(link, final)
        notes.append(f"{link} was a folder and no link, as in a copy that followed it: now {moved}")
    return notes


def _set_aside(path: Path) -> Path:
    """Move what lies in a folder of checkpoints to its `rejected/`."""
    (path.parent / "rejected").mkdir(exist_ok=True)
    return path.rename(path.parent / "rejected" / f"{path.name}-{time.time_ns()}")


def set_aside_newer(folder: Path, chosen: Path, best_step: int) -> None:
    """Move what is newer than the checkpoint that is continued to `rejected/`.

    The run writes those steps again; left in place they would count as the newest ones.

    Args:
        folder: The folder of the run's checkpoints.
        chosen: The one that is continued.
        best_step: Of the best evaluation until then.
    """
    chosen, folder = chosen.resolve(), folder.resolve()
    newer = [path for path in list_checkpoints(folder) if step_of(path) > step_of(chosen)]
    for path in newer:
        _set_aside(path)
    replace_link(folder / "latest", chosen)
    best = folder / folder_name(best_step)
    if best.exists():
        replace_link(folder / "best", best)
    else:
        (folder / "best").unlink(missing_ok=True)


def _prune(folder: Path, keep: int, keep_best: int) -> None:
    """Delete every checkpoint but the newest, the best, and what `best` leads to."""
    kept = {follow(folder / "best")}
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
    """The score in its manifest, -inf without one; its files are not verified."""
    try:
        score = read_json(path / MANIFEST)["score"]
        return -math.inf if score is None else float(score)
    except (OSError, ValueError, KeyError, TypeError):
        return -math.inf
