"""What a reader writes about a run, kept in its directory: a note and tags."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.read_files import read_json
from trainer.checkpoints.atomic_files import write_output

FILE = "notes.json"
MOST_LETTERS, MOST_TAGS, MOST_TAG_LETTERS = 10_000, 20, 40


@dataclass(frozen=True, slots=True)
class Annotation:
    """Text of a person's; nothing in a run depends on it."""

    note: str = ""
    tags: tuple[str, ...] = ()


def read_annotation(folder: Path) -> Annotation:
    """The annotation of a run directory; an empty one if there is none.

    Raises:
        InputError: If the file is none of ours.
    """
    try:
        return to_annotation(read_json(folder / FILE))
    except FileNotFoundError:
        return Annotation()


def write_annotation(folder: Path, annotation: Annotation) -> None:
    """Replace the annotation of a run directory, as a whole or not at all.

    Raises:
        InputError: If it cannot be written.
    """
    content = json.dumps(asdict(annotation), indent=2, ensure_ascii=False) + "\n"
    write_output(folder / FILE, content.encode("utf-8", "replace"))


def to_annotation(content: Any) -> Annotation:
    """{"note": text, "tags": [text]} -> Annotation, spaces around and repeated tags left out.

    Raises:
        InputError: For anything else, or what is longer than a person writes.
    """
    found = content if isinstance(content, dict) else {}
    note, tags = found.get("note"), found.get("tags")
    texts = isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)
    if not isinstance(note, str) or not isinstance(tags, list) or not texts:
        raise InputError(FILE, expected='{"note": text, "tags": [text, ...]}')
    tags = list(dict.fromkeys(filter(None, (" ".join(tag.split()) for tag in tags))))
    too_long = len(note) > MOST_LETTERS or any(len(tag) > MOST_TAG_LETTERS for tag in tags)
    if too_long or len(tags) > MOST_TAGS:
        raise InputError(
            FILE,
            expected=f"a note of at most {MOST_LETTERS:,} letters, and at most {MOST_TAGS} tags of "
            f"at most {MOST_TAG_LETTERS} letters",
        )
    return Annotation(note.strip(), tuple(tags))
