"""Where records go: the file and the screen. W&B and TensorBoard have tests of their own."""

from __future__ import annotations

import json
import logging
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from configs.schema_records import WandbConfig
from configs.visible import LogLines
from tests.support.sample_records import evaluation, facts, training
from trainer.records.console import PlainSink, RichSink, build_console, evaluation_lines
from trainer.records.jsonl import JsonlSink
from trainer.records.sinks import Record, RunFacts, Sinks
from trainer.records.wandb_sink import WandbSink


class Memory:
    """A sink that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def start(self, facts: RunFacts) -> None:
        self.told.append(facts)

    def record(self, record: Record) -> None:
        self.told.append(record)

    def finish(self, status: str) -> None:
        self.told.append(status)


def test_every_sink_is_told_everything_in_order(tmp_path: Path) -> None:
    memories = [Memory(), Memory()]
    sinks = Sinks(list(memories))
    begun = facts(tmp_path)
    sinks.start(begun)
    sinks.record(training(1))
    sinks.record(evaluation(2))
    sinks.finish("completed")
    for memory in memories:
        assert memory.told == [begun, training(1), evaluation(2), "completed"]


# ------------------------------------------------------------------ metrics.jsonl


def write_jsonl(folder: Path, records: list[Record], *, first_step: int = 0) -> list[Any]:
    """One try of a run; returns every line of the file, parsed."""
    sink = JsonlSink()
    sink.start(facts(folder, first_step=first_step))
    for record in records:
        sink.record(record)
    sink.finish("completed")
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_record_is_a_line_of_json(tmp_path: Path) -> None:
    records = [training(1), evaluation(1), training(2)]
    assert write_jsonl(tmp_path, records) == records


def test_a_record_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    sink = JsonlSink()
    sink.start(facts(tmp_path))
    sink.record(training(1))
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == training(1)
    sink.finish("completed")


@pytest.mark.parametrize(("first_step", "kept"), [(0, 0), (2, 2), (3, 3), (9, 4)])
def test_a_continued_run_drops_the_steps_it_takes_again(
    tmp_path: Path, first_step: int, kept: int
) -> None:
    old = [training(step) for step in (1, 2, 3, 4)]
    write_jsonl(tmp_path, old)
    new = [training(step) for step in (10, 11)]
    assert write_jsonl(tmp_path, new, first_step=first_step) == old[:kept] + new


def test_a_continued_run_keeps_the_evaluation_of_the_step_it_continues_from(tmp_path: Path) -> None:
    old = [training(5), evaluation(5)]
    write_jsonl(tmp_path, old)
    assert write_jsonl(tmp_path, [], first_step=5) == old


@pytest.mark.parametrize(
    "cut",
    ['{"st', '{"step": 2, "epoch": 0.', "\0" * 50, "{}", "[1]", "null", '{"step": null}', "\n"],
)
def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path, cut: str) -> None:
    old = [training(1), training(2)]
    write_jsonl(tmp_path, old)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(cut)
    assert write_jsonl(tmp_path, [training(3)], first_step=2) == [*old, training(3)]


def test_every_truncation_of_the_file_leaves_one_that_can_be_continued(tmp_path: Path) -> None:
    old = [training(1), evaluation(2)]
    write_jsonl(tmp_path, old)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        found = write_jsonl(tmp_path, [training(3)], first_step=2)
        assert found[-1] == training(3), f"after {length} bytes"
        assert found[:-1] in (old, old[:1], []), f"after {length} bytes"


# ------------------------------------------------------------------ the screen


@pytest.mark.parametrize(
    ("progress", "kinds"), [("auto", [PlainSink]), ("plain", [PlainSink]), ("rich", [RichSink])]
)
def test_without_a_terminal_the_display_is_plain_unless_asked_for(
    progress: Literal["auto", "rich", "plain", "off"], kinds: list[type]
) -> None:
    assert [type(sink) for sink in build_console(progress)] == kinds


def test_on_a_terminal_the_display_is_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert [type(sink) for sink in build_console("auto")] == [RichSink]
    assert [type(sink) for sink in build_console("plain")] == [PlainSink]
    monkeypatch.setenv("TERM", "dumb")
    assert [type(sink) for sink in build_console("auto")] == [PlainSink]


def test_the_display_may_be_off() -> None:
    assert build_console("off") == []


def test_plain_lines_say_where_the_run_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sink = PlainSink()
    sink.start(facts(tmp_path))
    sink.record(training(10))
    sink.record(evaluation(10))
    sink.finish("completed")
    lines = capsys.readouterr().out.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d  ", line) for line in lines), "the time of day"
    first, second = (line[10:] for line in lines)
    assert first == (
        "step 10/100  epoch 1.00  loss 0.1000  acc 50.00%  lr 0.001  500 samples/s  ETA 0:09"
    )
    assert second == "epoch 1  step 10  test accuracy 93.12%  test loss 0.2500"


def test_the_time_left_follows_from_the_mean_pace_and_not_from_the_latest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.records.console.PLAIN_SECONDS", 0.0)
    sink = PlainSink()
    sink.start(facts(tmp_path))
    for step, seconds, rate in ((10, 100.0, 1.0), (20, 110.0, 1e9), (50, 140.0, 1.0)):
        sink.record(training(step) | {"time": seconds, "train/samples_per_second": rate})
    left = [line.rpartition(" ")[2] for line in capsys.readouterr().out.splitlines()]
    assert left[1:] == ["1:20", "0:50"], "a second a step"


def test_epochs_of_evaluations_are_short(tmp_path: Path) -> None:
    lines = [
        evaluation_lines(evaluation(10) | {"epoch": epoch}, facts(tmp_path))[0]
        for epoch in (3.980583, 10.0, 0.5)
    ]
    assert [line.split("  ")[0] for line in lines] == ["epoch 3.98", "epoch 10", "epoch 0.5"]


def test_plain_training_lines_are_rare_and_evaluations_never_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.records.console.PLAIN_SECONDS", 3600.0)
    sink = PlainSink()
    sink.start(facts(tmp_path))
    for step in range(1, 6):
        sink.record(training(step))
        sink.record(evaluation(step))
    lines = capsys.readouterr().out.splitlines()
    assert sum("test accuracy" in line for line in lines) == 5
    assert sum("samples/s" in line for line in lines) == 1


@pytest.mark.parametrize("rate", [0.0, 1e-12])
def test_a_rate_of_nothing_is_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rate: float
) -> None:
    sink = PlainSink()
    sink.start(facts(tmp_path))
    sink.record(training(10) | {"train/samples_per_second": rate})
    assert "step 10/100" in capsys.readouterr().out


@pytest.mark.parametrize("first_step", [0, 5])
def test_the_live_display_runs_without_a_terminal_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], first_step: int
) -> None:
    sink = RichSink()
    sink.start(facts(tmp_path, first_step=first_step))
    sink.record(training(10))
    sink.record(evaluation(10))
    sink.record(training(100))
    sink.finish("completed")
    out = capsys.readouterr().out
    assert "epoch 1  step 10  test accuracy 93.12%" in out
    assert "100/100" in out
    assert "loss 0.0100" in out


@pytest.mark.parametrize(
    ("columns", "shown"),
    [(55, "loss 0.0100"), (70, "loss 0.0100  acc 50.00%"), (140, "slow: x9.0  500 samples/s")],
)
def test_steps_and_time_left_are_whole_in_any_terminal(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    columns: int,
    shown: str,
) -> None:
    """Law: what a narrow one has no room for is left out, and nothing is cut."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("rich._console", None)  # made once, as wide as it was then
    sink = RichSink()
    sink.start(replace(facts(tmp_path), total_steps=93_800))
    slow = {
        "system/step_seconds": 1.0,
        "system/slowest_step_seconds": 9.0,
        "system/slowest_rank": 1,
    }
    sink.record(training(100) | slow)
    sink.finish("completed")
    *_, line = capsys.readouterr().out.splitlines()
    assert re.search(r"  100/93800 .*(\d:\d\d:\d\d|-:--:--)$", line.rstrip()), line
    assert shown in line, line
    assert "…" not in line


def test_on_a_narrow_terminal_the_bar_keeps_its_place_beside_metrics_and_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: what does not fit beside the bar is left out, and a log line stands above it."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    handler = LogLines()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    sink = RichSink()
    sink.start(facts(tmp_path))
    slow = {"step_seconds": 0.04, "slowest_rank": 3, "slowest_step_seconds": 0.1}
    sink.record(training(10) | {f"system/{name}": value for name, value in slow.items()})
    handler.handle(logging.LogRecord("convoy", logging.WARNING, "", 0, "look here", (), None))
    sink.finish("completed")
    said = capsys.readouterr()
    assert said.err == ""
    plainly = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", said.out).replace("\r", "")
    *_, line, bar = plainly.rstrip().splitlines()
    assert line == "look here"
    assert "loss 0.1000  acc 50.00%  rank 3 slow: x2.5" in bar
    assert "samples/s" not in bar
    assert bar.index("10/100") > len("epoch 1.00 ") + 5, "a bar"
    assert bar.endswith("-:--:--")


def test_a_sink_that_was_never_started_is_finished_without_a_word_or_a_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    for sink in (RichSink(), PlainSink(), JsonlSink(), WandbSink(WandbConfig(), "run")):
        sink.finish("failed")
    assert capsys.readouterr() == ("", "")
    assert caplog.records == list(tmp_path.iterdir()) == []
