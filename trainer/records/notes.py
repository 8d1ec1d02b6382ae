"""What a hook shows of a run, in files: RUN/notes/NAME/step_NNNNNNNN.txt or .png."""

from __future__ import annotations

import re
from pathlib import Path

from configs.imports import import_extra
from trainer.records.sinks import Note, Record, RunFacts

FOLDER = "notes"


class NotesSink:
    """Writes every note to a file of its own; a step that is taken again writes it again."""

    def __init__(self) -> None:
        self.folder = Path(FOLDER)

    def start(self, facts: RunFacts) -> None:
        self.folder = facts.directory / FOLDER

    def record(self, record: Record) -> None:
        pass

    def note(self, note: Note) -> None:
        folder = self.folder / re.sub(r"[^\w.-]", "_", note.name).lstrip(".")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step_{note.step:08d}"
        if note.text is not None:
            path.with_suffix(".txt").write_text(note.text, encoding="utf-8")
        if note.pixels is not None:
            image = import_extra("PIL.Image", "images")
            grey = note.pixels.shape[-1] == 1
            pixels = note.pixels.squeeze(-1) if grey else note.pixels
            image.fromarray(pixels).save(path.with_suffix(".png"))

    def finish(self, status: str) -> None:
        pass
