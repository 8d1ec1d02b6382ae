"""Records in TensorBoard event files. Whatever goes wrong with them, training goes on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from configs.imports import import_extra
from configs.schema_records import LoggingConfig
from trainer.records.sinks import Note, Record, RunFacts

log = logging.getLogger("convoy")
FOLDER = "tensorboard"


def check_tensorboard(config: LoggingConfig) -> None:
    """Refuse `logging.tensorboard` where tensorboard is missing.

    Raises:
        InputError: If it is asked for and not installed.
    """
    if config.tensorboard:
        import_extra("tensorboard", "tensorboard")


class TensorBoardSink:
    """Writes every value of a record as a scalar over optimizer steps, and the config as text."""

    def __init__(self) -> None:
        self.writer: Any = None

    def start(self, facts: RunFacts) -> None:
        # Readers drop what earlier files of the folder say about the steps that are taken again.
        # Its background thread passes on whatever went wrong, so anything may come.
        try:
            from torch.utils.tensorboard import SummaryWriter

            folder = Path(facts.directory) / FOLDER
            self.writer = SummaryWriter(str(folder), purge_step=facts.first_step + 1)
            lines = (f"    {key}: {json.dumps(value)}" for key, value in facts.config.items())
            self.writer.add_text("config", "\n".join(lines), facts.first_step)
        except Exception as error:
            self._give_up(error)

    def record(self, record: Record) -> None:
        if self.writer is None:
            return
        try:
            step, when = int(record["step"]), record["time"]
            for key, value in record.items():
                if "/" in key or key == "epoch":
                    self.writer.add_scalar(key, value, step, walltime=when)
            self.writer.flush()
        except Exception as error:
            self._give_up(error)

    def note(self, note: Note) -> None:
        if self.writer is None:
            return
        try:
            if note.text is not None:
                self.writer.add_text(note.name, note.text, note.step)
            if note.pixels is not None:
                self.writer.add_image(note.name, note.pixels, note.step, dataformats="HWC")
            self.writer.flush()
        except Exception as error:
            self._give_up(error)

    def finish(self, status: str) -> None:
        if self.writer is None:
            return
        try:
            self.writer.close()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Warn once, and write nothing from then on."""
        reason = " ".join(str(error).split()) or type(error).__name__
        log.warning("TensorBoard files end here (%s); training goes on without them", reason)
        self.writer = None
