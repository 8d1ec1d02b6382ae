"""Runs of a W&B server -> RunRecord, through wandb's own client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from configs.errors import InputError, one_line
from launch.comparing.history import build_history, from_wandb
from launch.comparing.run_record import (
    RunRecord,
    count_names,
    repeated_note,
    selection,
    short_commit,
)
from launch.comparing.wandb_offline import INSTALL, split_facts

TIMEOUT_SECONDS = 30
STATUS = {"finished": "completed"}
"""W&B's words that are others than ours."""


def read_wandb_run(path: str) -> RunRecord:
    """Read one run.

    Args:
        path: entity/project/run_id.

    Raises:
        InputError: Without a key or an answer, or if there is no such run, or it is empty.
    """
    with _client(path) as api:
        return _to_run(api.run(path))


def read_wandb_project(
    path: str, *, group: str | None = None, tag: str | None = None
) -> list[RunRecord]:
    """Read all runs of a project that have recorded anything, oldest first.

    Args:
        path: entity/project.
        group: Only the runs of this group.
        tag: Only the runs with this tag.

    Raises:
        InputError: As for one run, or if no run is left.
    """
    wanted = {"group": group, "tags": tag}
    filters = {key: value for key, value in wanted.items() if value is not None}
    with _client(path) as api:
        runs = [_to_run(run) for run in api.runs(path, filters=filters, lazy=False) if _any(run)]
    if not runs:
        limits = "".join(f" with {key} {value!r}" for key, value in filters.items())
        raise InputError(f"no runs{limits} in the W&B project {path}", expected="at least one")
    return runs


@contextmanager
def _client(path: str) -> Iterator[Any]:
    """wandb.Api, with its many kinds of errors as one message."""
    try:
        import wandb
    except ImportError:
        raise InputError(f"reading {path} from W&B needs wandb", remedy=INSTALL) from None
    wandb.setup(wandb.Settings(silent=True))
    if not wandb.login(prompt=False):
        raise InputError(
            f"reading {path} from W&B needs an API key",
            remedy="Set WANDB_API_KEY or run `wandb login`; or, if a folder was meant, check that "
            "it exists.",
        )
    try:
        yield wandb.Api(timeout=TIMEOUT_SECONDS)
    except InputError:
        raise
    except Exception as error:  # CommError, UsageError, ValueError, AuthenticationError, ...
        reason = one_line(error)
        raise InputError(
            f"cannot read {path} from W&B ({reason})",
            remedy="Check the path, the key and the network.",
        ) from None


def _any(run: Any) -> bool:
    return int(run.lastHistoryStep) >= 0


def _to_run(run: Any) -> RunRecord:
    # Parquet files that an earlier scan cached may lack the latest steps of a run that goes on.
    history = build_history(from_wandb(list(run.scan_history(use_cache=False))))
    source = "/".join(run.path)
    if not history.records:
        raise InputError(
            f"the W&B run {source} is empty", expected="at least one wandb.log() of a number"
        )
    config, facts = split_facts(run.config)
    status = run.summary.get("status") if run.state != "running" else None
    metadata = run.metadata or {}
    commit = facts.get("git_commit") or run.commit or (metadata.get("git") or {}).get("commit")
    return RunRecord(
        name=run.name or run.id,
        source=source,
        config=config,
        records=history.records,
        status=str(status or STATUS.get(run.state, run.state)),
        git_commit=short_commit(commit),
        world_size=facts.get("world_size"),
        hardware=_hardware(metadata),
        group=run.group or None,
        notes=repeated_note(history.repeated),
        **selection(config, {}),
    )


def _hardware(metadata: dict[str, Any]) -> str | None:
    """The hardware of a run, as wandb-metadata.json tells it."""
    names = [str(gpu["name"]) for gpu in metadata.get("gpu_nvidia") or [] if gpu.get("name")]
    if names:
        return count_names(names)
    model = (metadata.get("cpu") or {}).get("model")
    return f"{model}, {metadata.get('cpu_count_logical')} CPUs" if model else None
