"""TensorBoard: every value once, over restarts too; and a broken disk stops no run."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.errors import InputError
from configs.schema_records import LoggingConfig
from tests.support.sample_records import evaluation, facts, training
from trainer.records.sinks import Record
from trainer.records.tensorboard import TensorBoardSink, check_tensorboard


def write(folder: Path, records: list[Record], *, first_step: int = 0) -> None:
    """One try of a run."""
    sink = TensorBoardSink()
    sink.start(facts(folder, first_step=first_step))
    for record in records:
        sink.record(record)
    sink.finish("completed")


def read(folder: Path) -> Any:
    """What TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard")).Reload()


def points(folder: Path, key: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(key)]


def test_every_value_of_every_record_is_a_scalar_over_its_step(tmp_path: Path) -> None:
    records = [training(1), evaluation(1), training(2)]
    write(tmp_path, records)
    found = read(tmp_path)
    for key in {key for record in records for key in record} - {"step", "time"}:
        events = [(e.step, e.wall_time, pytest.approx(e.value)) for e in found.Scalars(key)]
        assert events == [(r["step"], r["time"], r[key]) for r in records if key in r]


def test_the_config_is_there_as_text(tmp_path: Path) -> None:
    write(tmp_path, [training(1)])
    (event,) = read(tmp_path).Tensors("config/text_summary")
    assert b"optimizer.lr: 0.25" in event.tensor_proto.string_val[0]


def test_a_continued_run_has_no_step_twice(tmp_path: Path) -> None:
    """Killed after step 4, continued from step 2, where an evaluation had been interrupted."""
    write(tmp_path, [training(step) for step in (1, 2, 3, 4)])
    again = [{**training(step), "train/loss": 10.0 + step} for step in (3, 4, 5)]
    write(tmp_path, [evaluation(2), *again], first_step=2)
    assert points(tmp_path, "train/loss") == [(1, 1.0), (2, 0.5), (3, 13.0), (4, 14.0), (5, 15.0)]
    assert points(tmp_path, "eval/loss") == [(2, 0.25)]


def test_a_continued_run_has_no_step_twice_though_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [training(1), training(2)])
    monkeypatch.setattr("time.time", lambda: 1e9)
    write(tmp_path, [{**training(2), "train/loss": 12.0}], first_step=1)
    assert points(tmp_path, "train/loss") == [(1, 1.0), (2, 12.0)]


def test_a_record_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    sink = TensorBoardSink()
    sink.start(facts(tmp_path))
    sink.record(training(1))
    assert points(tmp_path, "train/loss") == [(1, 1.0)]
    sink.finish("completed")


def test_a_folder_that_cannot_be_written_only_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    write(tmp_path, [training(1), training(2)])
    (message,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "training goes on" in message


def test_an_error_while_recording_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = TensorBoardSink()
    sink.start(facts(tmp_path))
    for step in (1, 2, 3):
        sink.record({**training(step), "train/loss": "no number"})  # type: ignore[dict-item]
    sink.finish("completed")
    (message,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "no number" in message


def test_without_the_package_it_is_refused_only_if_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorboard", None)
        check_tensorboard(LoggingConfig())
        with pytest.raises(InputError, match=r"tensorboard is not installed.*\[tensorboard\]"):
            check_tensorboard(LoggingConfig(tensorboard=True))


def test_a_sink_that_was_never_started_is_finished_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    TensorBoardSink().finish("failed")
    assert caplog.records == []
