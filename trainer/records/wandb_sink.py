"""Records on Weights & Biases. Whatever goes wrong with it, training goes on."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import secrets
from pathlib import Path
from typing import Any

from configs.errors import InputError, one_line
from configs.identity import nest
from configs.imports import import_extra, pip_line
from configs.read_files import read_json
from configs.schema_records import WandbConfig
from trainer.checkpoints.atomic_files import follow, write_atomically
from trainer.objective.selection import Selection
from trainer.ranks.stop_signals import EXIT_PREEMPTED
from trainer.records.sinks import Note, Record, RunFacts

log = logging.getLogger("convoy")
ID_FILE, SENT_FILE = "wandb.json", "wandb_sent.json"
EXIT_CODES = {"completed": 0, "preempted": EXIT_PREEMPTED}
"""As of the command; W&B calls a run preempted that was marked and did not end with 0."""


class WandbSink:
    """Sends records to one W&B run per run directory; a restart continues it under its saved id.

    A restart takes steps again that were recorded before, and W&B keeps what it was sent first. The
    last step sent is remembered for each group of keys (train, eval, gradients), because an
    interrupted evaluation belongs to the step that the run continues from.
    """

    def __init__(self, config: WandbConfig, name: str) -> None:
        self.config = config
        self.name = name
        self.run: Any = None
        self.directory = Path()
        self.sent: dict[str, float] = {}
        """The last step that was sent, for each group of keys."""
        self.best: dict[str, float] = {}
        self.selection: Selection | None = None

    def start(self, facts: RunFacts) -> None:
        self.selection = facts.selection
        mode = os.environ.get("WANDB_MODE") or self.config.mode
        if mode == "disabled":
            return
        self.directory, self.best = facts.directory, _read_best(facts.directory)
        try:
            run_id = _saved_id(facts.directory)
        except OSError as error:
            self._give_up("could not start", error)
            return
        # Its errors have no common base class, and none of them is a reason to stop a run.
        try:
            import wandb

            if mode == "online" and not wandb.login(prompt=False):
                raise RuntimeError("no API key: set WANDB_API_KEY or run `wandb login`")
            self.run = self._open(wandb, mode, run_id, facts)
        except ImportError as error:
            self._give_up(f"is not installed: {pip_line('wandb')}", error)
        except Exception as error:
            if mode != "online":
                self._give_up("could not start", error)
                return
            log.warning("W&B is out of reach (%s); recording offline", one_line(error))
            try:
                self.run = self._open(wandb, "offline", run_id, facts)
            except Exception as second:
                self._give_up("could not start", second)

    def _open(self, wandb: Any, mode: str, run_id: str, facts: RunFacts) -> Any:
        """Begin or continue the W&B run, online or offline; returns wandb's own run."""
        run = _begin(
            wandb,
            self.config,
            facts.directory,
            run_id,
            mode,
            name=self.name,
            group=self.config.group,
            job_type=self.config.job_type,
            tags=self.config.tags or None,
            config={
                **nest(facts.config),
                "git_commit": facts.environment["git_commit"],
                "world_size": facts.environment["world_size"],
            },
            settings=wandb.Settings(init_timeout=30, console="wrap"),
        )
        self.sent = _load_sent(facts.directory)
        if mode == "online":
            # What was sent may not have arrived, and only what has arrived is on the server.
            arrived = run.summary.get("step", -1) if run.resumed else -1
            self.sent = {group: min(step, arrived) for group, step in self.sent.items()}
        return run

    def record(self, record: Record) -> None:
        if self.run is None:
            return
        step = record["step"]
        new = {key for key in record if "/" in key and step > self.sent.get(_group(key), -1)}
        if not new:
            return
        try:
            self.run.log({key: v for key, v in record.items() if "/" not in key or key in new})
            values = _chosen_by(record)
            known = {key[5:]: value for key, value in self.best.items()}
            if values and self.selection is not None and self.selection.improves(values, known):
                self.best = {f"best/{name}": value for name, value in values.items()}
                self.best["best/step"] = step
                self.run.summary.update(self.best)
            self.sent |= {_group(key): step for key in new}
            _save_sent(self.directory, self.sent)
        except Exception as error:
            self._give_up("could not record", error)

    def note(self, note: Note) -> None:
        key = f"notes/{note.name}"
        if self.run is None or note.step <= self.sent.get(key, -1):
            return
        try:
            import wandb

            shown: Any = note.text if note.pixels is None else wandb.Image(note.pixels)
            if note.counts is not None and note.edges is not None:
                shown = wandb.Histogram(np_histogram=(note.counts, note.edges))
            self.run.log({"step": note.step, key: shown})
            self.sent[key] = note.step
            _save_sent(self.directory, self.sent)
        except Exception as error:
            self._give_up("could not show a note", error)

    def finish(self, status: str) -> None:
        if self.run is not None:
            try:
                self.best |= _read_best(self.directory)
                self.run.summary.update({**self.best, "status": status})
                if self.config.artifacts and status == "completed":
                    self._upload_best()
                if status == "preempted":  # else it would look finished there
                    self.run.mark_preempting()
                self.run.finish(exit_code=EXIT_CODES.get(status, 1))
            except Exception as error:
                self._give_up("could not finish", error)

    def _upload_best(self) -> None:
        """Upload the best checkpoint as artifact NAME of type `model`, under the alias `best`."""
        import wandb

        checkpoint = follow(self.directory / "checkpoints" / "best")
        if not checkpoint.is_dir():
            return
        artifact = wandb.Artifact(
            re.sub(r"[^\w.-]", "-", self.name), type="model", metadata=self.best
        )
        artifact.add_dir(str(checkpoint))
        self.run.log_artifact(artifact, aliases=["best", checkpoint.name])

    def _give_up(self, what: str, error: Exception) -> None:
        """Warn once, and send nothing from then on."""
        log.warning("W&B %s (%s); training goes on without it", what, one_line(error))
        self.run = None


def show_evaluation(
    directory: Path,
    config: WandbConfig,
    step: int,
    values: dict[str, float],
    pictures: dict[str, bytes],
) -> str:
    """Show metrics and pictures (PNG) of a step's evaluation in the W&B run of a run directory.

    Returns:
        The id of that run.

    Raises:
        InputError: If the run has none, or W&B refuses it.
    """
    if not (directory / ID_FILE).is_file():
        raise InputError(
            "--wandb",
            given=str(directory),
            expected="a run that was recorded on W&B",
            remedy="Train it with --logging.wandb.mode online or offline.",
        )
    wandb, mode = import_extra("wandb", "wandb"), os.environ.get("WANDB_MODE") or config.mode
    run_id = _saved_id(directory)
    try:
        settings = wandb.Settings(init_timeout=30, console="off", x_disable_stats=True)
        run = _begin(wandb, config, directory, run_id, mode, settings=settings)
        shown: dict[str, Any] = dict(values)
        for name, content in pictures.items():
            image = import_extra("PIL.Image", "images").open(io.BytesIO(content))
            shown[name] = wandb.Image(image)
        run.log({"step": step} | {f"evaluation/{name}": value for name, value in shown.items()})
        run.finish()
    except Exception as error:
        raise InputError(f"W&B refuses the evaluation ({one_line(error)})") from None
    return run_id


def _begin(
    wandb: Any, where: WandbConfig, directory: Path, run_id: str, mode: str, **more: Any
) -> Any:
    """Begin or continue a W&B run, whose values are all over `step`."""
    run = wandb.init(
        project=where.project,
        entity=where.entity,
        id=run_id,
        resume="allow",
        mode=mode,
        dir=str(directory),
        **more,
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _saved_id(directory: Path) -> str:
    """The id of this directory's W&B run; a new one is saved before anything is sent.

    Under a sweep its agent has chosen the id, in WANDB_RUN_ID.
    """
    path = directory / ID_FILE
    if path.exists():
        try:
            return str(read_json(path)["id"])
        except (ValueError, KeyError, TypeError):
            log.warning("%s is unreadable: this becomes a new W&B run", path)
    run_id = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    write_atomically(path, json.dumps({"id": run_id}) + "\n")
    return run_id


def _group(key: str) -> str:
    """The group of a key: `train` for `train/loss`."""
    return key.partition("/")[0]


def _load_sent(directory: Path) -> dict[str, float]:
    """The last step sent for each group of keys.

    It is empty if nothing was sent, or if the file is unreadable: records may then be sent twice.
    """
    try:
        sent = read_json(directory / SENT_FILE)
        return {str(group): float(step) for group, step in sent.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _save_sent(directory: Path, sent: dict[str, float]) -> None:
    """Remember the last step sent for each group of keys.

    The file is not flushed to disk, which would cost milliseconds for every record.
    """
    write_atomically(directory / SENT_FILE, json.dumps(sent) + "\n", durable=False)


def _chosen_by(record: Record) -> dict[str, float]:
    """The metrics of an evaluation that the best one is chosen by; empty for another record."""
    evaluated = (key.partition("/") for key in record)
    return {name: record[f"{g}/{name}"] for g, _, name in evaluated if g in ("eval", "val")}


def _read_best(directory: Path) -> dict[str, float]:
    """The `best/` values in summary.json; empty if there are none."""
    try:
        summary = read_json(directory / "summary.json")
        return {k: v for k, v in summary.items() if k.startswith("best/") and v is not None}
    except (OSError, ValueError, AttributeError):
        return {}
