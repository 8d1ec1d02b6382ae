"""Weights & Biases. Whatever goes wrong with it, training goes on."""

from __future__ import annotations

import json
import logging
import os
import secrets
from pathlib import Path
from typing import Any

from configs.schema_execution import WandbConfig
from trainer.sinks import Record, RunFacts

log = logging.getLogger("convoy")
ID_FILE = "wandb.json"


class WandbSink:
    """One W&B run per run directory: a restart continues it under the id saved there."""

    def __init__(self, config: WandbConfig, name: str) -> None:
        self.config = config
        self.name = name
        self.run: Any = None

    def start(self, facts: RunFacts) -> None:
        mode = os.environ.get("WANDB_MODE") or self.config.mode
        if mode == "disabled":
            return
        run_id = _saved_id(facts.directory)
        # Its errors have no common base class, and none of them is a reason to stop a run.
        try:
            import wandb

            if mode == "online" and not wandb.login(prompt=False):
                raise RuntimeError("no API key: set WANDB_API_KEY or run `wandb login`")
            self.run = self._open(wandb, mode, run_id, facts)
        except ImportError as error:
            self._give_up("is not installed: pip install -e '.[wandb]'", error)
        except Exception as error:
            if mode != "online":
                self._give_up("could not start", error)
                return
            log.warning("W&B is out of reach (%s); recording offline", _one_line(error))
            try:
                self.run = self._open(wandb, "offline", run_id, facts)
            except Exception as second:
                self._give_up("could not start", second)

    def _open(self, wandb: Any, mode: str, run_id: str, facts: RunFacts) -> Any:
        run = wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            name=self.name,
            group=self.config.group,
            job_type=self.config.job_type,
            tags=self.config.tags or None,
            id=run_id,
            resume="allow",
            mode=mode,
            dir=str(facts.directory),
            config={
                **facts.config,
                "git_commit": facts.environment["git_commit"],
                "world_size": facts.environment["world_size"],
            },
            settings=wandb.Settings(init_timeout=30, console="off"),
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run

    def record(self, record: Record) -> None:
        if self.run is not None:
            try:
                self.run.log(record)
            except Exception as error:
                self._give_up("could not record", error)

    def finish(self, status: str) -> None:
        if self.run is not None:
            try:
                self.run.summary["status"] = status
                self.run.finish(exit_code=1 if status == "failed" else 0)
            except Exception as error:
                self._give_up("could not finish", error)

    def _give_up(self, what: str, error: Exception) -> None:
        log.warning("W&B %s (%s); training goes on without it", what, _one_line(error))
        self.run = None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _saved_id(directory: Path) -> str:
    """The id of this directory's W&B run, made and saved before anything is sent."""
    path = directory / ID_FILE
    if path.exists():
        try:
            return str(json.loads(path.read_text())["id"])
        except (ValueError, KeyError, TypeError):
            log.warning("%s is unreadable: this becomes a new W&B run", path)
    run_id = secrets.token_hex(4)
    path.write_text(json.dumps({"id": run_id}) + "\n")
    return run_id
