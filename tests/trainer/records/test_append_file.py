"""A disk that is full costs no record: every one comes, whole and in order, when there is room."""

from __future__ import annotations

import json
import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.sample_records import facts, training
from trainer.records.append_file import AppendFile
from trainer.records.jsonl import JsonlSink
from trainer.records.tensorboard import TensorBoardSink


@contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """No file of this process becomes larger: the system takes what fits and refuses the rest."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_pieces_wait_and_none_is_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = AppendFile(tmp_path / "x", new=True)
    file.append(b"one,")
    with room_for(6):
        file.append(b"two,")
        file.append(b"three,")
    file.append(b"four,")
    assert (tmp_path / "x").read_bytes() == b"one,two,three,four,"
    with room_for(20):
        file.append(b"five,")
    file.close()
    assert (tmp_path / "x").read_bytes() == b"one,two,three,four,five,"
    messages = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(messages) == 2  # once each time
    assert "waits for the disk" in messages[0]


@pytest.mark.parametrize("kind", [JsonlSink, TensorBoardSink])
def test_every_record_comes_when_there_is_room(
    kind: type[JsonlSink | TensorBoardSink], tmp_path: Path
) -> None:
    sink = kind()
    sink.start(facts(tmp_path))
    sink.record(training(1))
    assert sink.file is not None
    with room_for(sink.file.end + 10):
        sink.record(training(2))
        sink.record(training(3))
    sink.record(training(4))
    sink.finish("completed")
    if kind is JsonlSink:
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    else:
        found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3, 4]


def test_a_line_that_is_no_text_is_dropped(tmp_path: Path) -> None:
    """Law: a run continues whatever became of its records; those that can be read are kept."""
    (tmp_path / "metrics.jsonl").write_bytes(
        json.dumps(training(1)).encode()
        + b"\n\xff\xfe\n"
        + json.dumps(training(2)).encode()
        + b"\n{"
    )
    sink = JsonlSink()
    sink.start(facts(tmp_path, first_step=9))
    sink.finish("completed")
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [training(1), training(2)]
