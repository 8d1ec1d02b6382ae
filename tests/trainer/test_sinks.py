"""Where records go: files, the screen, W&B; and what happens when one of them breaks."""

from __future__ import annotations

import json
import logging
import os
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record as WandbRecord

from configs.schema_execution import WandbConfig
from trainer.sink_console import PlainSink, RichSink, build_console
from trainer.sink_jsonl import JsonlSink
from trainer.sink_wandb import WandbSink
from trainer.sinks import Record, RunFacts, Sinks

CONFIG = {"optimizer.lr": 0.25, "model.kwargs": {"hidden": [4]}, "seed": 3}


def facts(folder: Path, *, first_step: int = 0) -> RunFacts:
    return RunFacts(
        directory=folder,
        config=CONFIG,
        environment={"git_commit": "abc", "world_size": 2},
        total_steps=100,
        samples_per_step=50,
        first_step=first_step,
    )


def training(step: int) -> Record:
    return {
        "step": step,
        "epoch": step / 10,
        "time": 1000.0 + step,
        "train/loss": 1 / step,
        "train/accuracy": 0.5,
        "train/lr": 0.001,
        "train/grad_norm": 2.0,
        "train/samples_per_second": 500.0,
    }


def evaluation(step: int) -> Record:
    return {
        "step": step,
        "epoch": step / 10,
        "time": 1000.0 + step,
        "eval/loss": 0.25,
        "eval/accuracy": 0.9312,
    }


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
    assert [type(sink) for sink in build_console("auto")] == [RichSink]
    assert [type(sink) for sink in build_console("plain")] == [PlainSink]


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
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        "step 10/100  epoch 1.00  loss 0.1000  acc 50.00%  lr 0.001  500 samples/s  ETA 0:09"
    )
    assert second == "epoch 1  step 10  test accuracy 93.12%  test loss 0.2500"


def test_plain_training_lines_are_rare_and_evaluations_never_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.sink_console.PLAIN_SECONDS", 3600.0)
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


def test_a_display_that_was_never_started_can_be_finished() -> None:
    for sink in (RichSink(), PlainSink(), JsonlSink(), WandbSink(WandbConfig(), "run")):
        sink.finish("failed")


# ------------------------------------------------------------------ W&B


@pytest.fixture(autouse=True)
def wandb_stays_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No account, no server, and nothing of W&B's outside of tmp_path."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    home = tmp_path / "wandb-home"
    home.mkdir()
    for name in ("CACHE_DIR", "CONFIG_DIR", "DATA_DIR", "ARTIFACT_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    yield
    wandb.teardown()


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


Mode = Literal["online", "offline", "disabled"]


def wandb_sink(mode: Mode = "offline") -> WandbSink:
    config = WandbConfig(mode=mode, project="tests", group="a group", tags=["one", "two"])
    return WandbSink(config, "my run")


def offline_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))


def read_offline(path: Path) -> list[Any]:
    """The records of a .wandb file, which is a LevelDB log of protobuf messages."""
    wandb.teardown()  # its service process writes the last of it when it ends
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    records, pending, at = [], b"", 7
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:  # the end of a block is padding
            at += room
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        pending += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            records.append(WandbRecord.FromString(pending))
            pending = b""
    return records


def history(records: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            item.key or ".".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        for record in records
        if record.HasField("history")
    ]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_an_offline_run_holds_every_record_and_the_config(run_folder: Path) -> None:
    sink = wandb_sink()
    sink.start(facts(run_folder))
    sink.record(training(1))
    sink.record(evaluation(2))
    sink.finish("completed")
    (path,) = offline_files(run_folder)
    records = read_offline(path)

    logged = history(records)
    assert len(logged) == 2
    for found, expected in zip(logged, [training(1), evaluation(2)], strict=True):
        assert {key: found[key] for key in expected} == expected

    (run,) = [r.run for r in records if r.HasField("run")][:1]
    assert run.run_id == json.loads((run_folder / "wandb.json").read_text())["id"]
    assert (run.project, run.display_name, run.run_group) == ("tests", "my run", "a group")
    assert sorted(run.tags) == ["one", "two"]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    expected = CONFIG | {"git_commit": "abc", "world_size": 2}
    assert {key: config[key] for key in expected} == expected

    statuses = [
        json.loads(item.value_json)
        for record in records
        if record.HasField("summary")
        for item in record.summary.update
        if item.key == "status"
    ]
    assert statuses[-1] == "completed"
    axes = {record.metric.name or record.metric.glob_name for record in records}
    assert {"step", "*"} <= axes


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("preempted", 0), ("failed", 1)])
def test_only_a_failed_run_ends_as_failed(run_folder: Path, status: str, code: int) -> None:
    sink = wandb_sink()
    sink.start(facts(run_folder))
    sink.finish(status)
    (path,) = offline_files(run_folder)
    assert [r.exit.exit_code for r in read_offline(path) if r.HasField("exit")] == [code]


def test_a_restart_continues_the_same_wandb_run(run_folder: Path) -> None:
    for first_step in (0, 3):
        sink = wandb_sink()
        sink.start(facts(run_folder, first_step=first_step))
        sink.record(training(first_step + 1))
        sink.finish("preempted")
    saved = json.loads((run_folder / "wandb.json").read_text())["id"]
    found = {
        record.run.run_id
        for path in offline_files(run_folder)
        for record in read_offline(path)
        if record.HasField("run")
    }
    assert found == {saved}


def test_two_runs_are_two_wandb_runs(tmp_path: Path) -> None:
    ids = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        sink = wandb_sink()
        sink.start(facts(tmp_path / name))
        sink.finish("completed")
        ids.add(json.loads((tmp_path / name / "wandb.json").read_text())["id"])
    assert len(ids) == 2


def test_the_id_is_saved_before_wandb_hears_of_the_run(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []

    def init(**given: Any) -> None:
        seen.append((given["id"], json.loads((run_folder / "wandb.json").read_text())["id"]))
        assert given["resume"] == "allow"
        raise RuntimeError("the server is on fire")

    monkeypatch.setattr(wandb, "init", init)
    for _ in range(2):
        wandb_sink().start(facts(run_folder))
    assert len({identifier for pair in seen for identifier in pair}) == 1
    assert len(seen) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null"])
def test_an_unreadable_id_makes_a_new_run_and_is_replaced(
    run_folder: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (run_folder / "wandb.json").write_text(text)
    sink = wandb_sink()
    sink.start(facts(run_folder))
    sink.finish("completed")
    identifier = json.loads((run_folder / "wandb.json").read_text())["id"]
    (path,) = offline_files(run_folder)
    assert path.name == f"run-{identifier}.wandb"
    assert any("wandb.json" in message for message in warnings(caplog))


@pytest.mark.parametrize(
    ("mode", "variable"),
    [("disabled", None), ("offline", "disabled"), ("online", "disabled")],
)
def test_disabled_does_nothing_at_all(
    run_folder: Path, mode: Mode, variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)

    def never(**_: Any) -> None:
        raise AssertionError("W&B was called")

    monkeypatch.setattr(wandb, "init", never)
    sink = wandb_sink(mode)
    sink.start(facts(run_folder))
    sink.record(training(1))
    sink.finish("completed")
    assert list(run_folder.iterdir()) == []


def test_the_environment_overrides_a_mode_that_is_on(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    sink = wandb_sink("online")
    sink.start(facts(run_folder))
    sink.finish("completed")
    assert len(offline_files(run_folder)) == 1
    assert warnings(caplog) == []


def test_online_without_a_key_falls_back_to_offline_and_says_so(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = wandb_sink("online")
    sink.start(facts(run_folder))
    sink.record(training(1))
    sink.finish("completed")
    (path,) = offline_files(run_folder)
    assert len(history(read_offline(path))) == 1
    (message,) = warnings(caplog)
    assert re.search("WANDB_API_KEY.*offline", message)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_without_the_package_the_run_goes_on_without_wandb(
    run_folder: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "wandb", None)
        sink = wandb_sink(mode)
        sink.start(facts(run_folder))
        sink.record(training(1))
        sink.finish("completed")
    (message,) = warnings(caplog)
    assert "pip install" in message


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_wandb_that_cannot_start_only_warns(
    run_folder: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("the disk\nis full")

    monkeypatch.setattr(wandb, "init", init)
    sink = wandb_sink(mode)
    sink.start(facts(run_folder))
    sink.record(training(1))
    sink.finish("completed")
    assert "the disk is full" in warnings(caplog)[-1]
    assert "training goes on" in warnings(caplog)[-1]


class Broken:
    """A W&B run whose every method fails."""

    def __init__(self, fails: str) -> None:
        self.fails = fails
        self.logged = 0
        self.summary: dict[str, Any] = {}

    def log(self, record: Record) -> None:
        self.logged += 1
        if self.fails == "log":
            raise ConnectionError("lost")

    def finish(self, exit_code: int) -> None:
        if self.fails == "finish":
            raise ConnectionError("lost")


def test_an_error_while_recording_warns_once_and_ends_wandb(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sink, broken = wandb_sink(), Broken("log")
    sink.run = broken
    for step in (1, 2, 3):
        sink.record(training(step))
    sink.finish("completed")
    assert broken.logged == 1
    (message,) = warnings(caplog)
    assert "could not record (lost)" in message


def test_an_error_while_finishing_only_warns(caplog: pytest.LogCaptureFixture) -> None:
    sink = wandb_sink()
    sink.run = Broken("finish")
    sink.record(training(1))
    sink.finish("completed")
    (message,) = warnings(caplog)
    assert "could not finish (lost)" in message
