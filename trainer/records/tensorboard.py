"""Records in TensorBoard event files. Whatever goes wrong with them, training goes on."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

from configs.errors import one_line
from configs.imports import import_extra
from configs.schema_records import LoggingConfig
from trainer.records.append_file import AppendFile
from trainer.records.sinks import Note, Record, RunFacts

log = logging.getLogger("convoy")
FOLDER = "tensorboard"
PREFIX = "events.out.tfevents"


def check_tensorboard(config: LoggingConfig) -> None:
    """Refuse `logging.tensorboard` where tensorboard is missing.

    Raises:
        InputError: If it is asked for and not installed.
    """
    if config.tensorboard:
        import_extra("tensorboard", "tensorboard")


class TensorBoardSink:
    """Writes every value of a record as a scalar over optimizer steps, and the config as text.

    Not through SummaryWriter: what its thread fails to write is lost, and the file ends there.
    """

    def __init__(self) -> None:
        self.file: AppendFile | None = None

    def start(self, facts: RunFacts) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from torch.utils.tensorboard.summary import text

            folder = Path(facts.directory) / FOLDER
            folder.mkdir(exist_ok=True)
            self.file = AppendFile(_next_file(folder), new=True)
            # Readers drop what earlier files of the folder say about the steps taken again.
            first, begun = facts.first_step + 1, SessionLog(status=SessionLog.START)
            lines = (f"    {key}: {json.dumps(value)}" for key, value in facts.config.items())
            config = text("config", "\n".join(lines))  # type: ignore[no-untyped-call]
            self._append(
                [
                    Event(wall_time=time.time(), step=first, file_version="brain.Event:2"),
                    Event(wall_time=time.time(), step=first, session_log=begun),
                    Event(wall_time=time.time(), step=facts.first_step, summary=config),
                ]
            )
        except Exception as error:
            self._give_up(error)

    def record(self, record: Record) -> None:
        if self.file is None:
            return
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from torch.utils.tensorboard.summary import scalar

            place: dict[str, Any] = {"step": int(record["step"]), "wall_time": record["time"]}
            self._append(
                [
                    Event(summary=scalar(key, value), **place)  # type: ignore[no-untyped-call]
                    for key, value in record.items()
                    if "/" in key or key == "epoch"
                ]
            )
        except Exception as error:
            self._give_up(error)

    def note(self, note: Note) -> None:
        if self.file is None:
            return
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from torch.utils.tensorboard.summary import histogram_raw, image, text

            if note.counts is not None and note.edges is not None:
                middles = (note.edges[:-1] + note.edges[1:]) / 2
                shown = histogram_raw(  # type: ignore[no-untyped-call]
                    note.name,
                    *(float(note.edges[0]), float(note.edges[-1]), int(note.counts.sum())),
                    *(float(note.counts @ middles), float(note.counts @ middles**2)),
                    *(note.edges[1:].tolist(), note.counts.tolist()),
                )
            elif note.pixels is None:
                shown = text(note.name, note.text)  # type: ignore[no-untyped-call]
            else:
                shown = image(note.name, note.pixels, dataformats="HWC")  # type: ignore[no-untyped-call]
            self._append([Event(summary=shown, step=note.step, wall_time=time.time())])
        except Exception as error:
            self._give_up(error)

    def _append(self, events: list[Any]) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        assert self.file is not None
        piece = io.BytesIO()
        for event in events:
            RecordWriter(piece).write(event.SerializeToString())
        self.file.append(piece.getvalue())

    def finish(self, status: str) -> None:
        if self.file is not None:
            self.file.close()

    def _give_up(self, error: Exception) -> None:
        """Warn once, and write nothing from then on."""
        reason = one_line(error)
        log.warning("TensorBoard files end here (%s); training goes on without them", reason)
        self.file = None


def _next_file(folder: Path) -> Path:
    """A name after those that are there, wherever the clock stands: readers go by their order."""
    earlier = [path.name.split(".")[3] for path in folder.glob(f"{PREFIX}.*")]
    seconds = max([int(time.time()), *(int(word) + 1 for word in earlier if word.isdecimal())])
    return folder / f"{PREFIX}.{seconds:010d}.{socket.gethostname()}.{os.getpid()}.0"
