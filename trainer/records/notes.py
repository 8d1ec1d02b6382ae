"""What a hook shows of a run, in files: RUN/notes/NAME/step_NNNNNNNN.txt, .png or .json."""

from __future__ import annotations

import io
import json
import logging
import re
from pathlib import Path

from configs.imports import import_extra
from trainer.checkpoints.atomic_files import write_atomically
from trainer.records.sinks import Note, Record, RunFacts

log = logging.getLogger("convoy")
FOLDER = "notes"


class NotesSink:
    """Writes every note to a file of its own; a step that is taken again writes it again.

    A note that the disk refuses is lost, which is said once, and costs no run.
    """

    def __init__(self) -> None:
        self.folder = Path(FOLDER)
        self.refused = False

    def start(self, facts: RunFacts) -> None:
        self.folder = facts.directory / FOLDER

    def record(self, record: Record) -> None:
        pass

    def note(self, note: Note) -> None:
        folder = self.folder / re.sub(r"[^\w.-]", "_", note.name).lstrip(".")
        path = folder / f"step_{note.step:08d}"
        text, picture = note.text, _png(note)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if text is not None:
                write_atomically(path.with_suffix(".txt"), text, durable=False)
            if picture is not None:
                write_atomically(path.with_suffix(".png"), picture, durable=False)
            if note.counts is not None and note.edges is not None:
                bins = {"counts": note.counts.tolist(), "edges": note.edges.tolist()}
                write_atomically(path.with_suffix(".json"), json.dumps(bins) + "\n", durable=False)
        except OSError as error:
            if not self.refused:
                log.error("%s cannot be written (%s); training goes on", path, error.strerror)
            self.refused = True

    def finish(self, status: str) -> None:
        pass


def _png(note: Note) -> bytes | None:
    """The picture of a note, if it has one."""
    if note.pixels is None:
        return None
    grey, content = note.pixels.shape[-1] == 1, io.BytesIO()
    pixels = note.pixels.squeeze(-1) if grey else note.pixels
    import_extra("PIL.Image", "images").fromarray(pixels).save(content, format="png")
    return content.getvalue()
