"""Weights & Biases: what it is sent, that restarts continue it, and that it never stops a run."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import wandb
from PIL import Image
from wandb.proto.wandb_internal_pb2 import Record as WandbRecord

from configs.errors import InputError
from configs.identity import nest
from configs.schema_records import WandbConfig
from launch.comparing.wandb_offline import read_messages
from tests.support.sample_records import CONFIG, evaluation, facts, training
from trainer.records.sinks import Note, Record
from trainer.records.wandb_sink import WandbSink, show_evaluation

pytestmark = [
    pytest.mark.process,  # W&B's own, which every run of it starts
    pytest.mark.usefixtures("wandb_stays_here"),
]


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


def write(
    folder: Path,
    *records: Record,
    mode: Mode = "offline",
    first_step: int = 0,
    status: str = "completed",
) -> None:
    """One try of a run."""
    sink = wandb_sink(mode)
    sink.start(facts(folder, first_step=first_step))
    for record in records:
        sink.record(record)
    sink.finish(status)


def read_offline(path: Path) -> list[Any]:
    """The records of a .wandb file."""
    wandb.teardown()  # its service process writes the last of it when it ends
    return [WandbRecord.FromString(message) for message in read_messages(path.read_bytes(), path)]


def history(records: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            item.key or ".".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        for record in records
        if record.HasField("history")
    ]


def summary(records: list[Any]) -> dict[str, Any]:
    """The summary at the end."""
    return {
        item.key or ".".join(item.nested_key): json.loads(item.value_json)
        for record in records
        if record.HasField("summary")
        for item in record.summary.update
    }


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_an_offline_run_holds_every_record_and_the_config(run_folder: Path) -> None:
    write(run_folder, training(1), evaluation(2))
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
    expected = nest(CONFIG) | {"git_commit": "abc", "world_size": 2}
    assert {key: config[key] for key in expected} == expected
    assert config["optimizer"] == {"lr": 0.25}
    assert not [key for key in config if "." in key]

    assert summary(records)["status"] == "completed"
    axes = {record.metric.name or record.metric.glob_name for record in records}
    assert {"step", "*"} <= axes


def logged_steps(folder: Path, key: str) -> list[float]:
    """Steps at which a key was recorded, over all offline files of a run."""
    rows = [row for path in offline_files(folder) for row in history(read_offline(path))]
    return [row["step"] for row in rows if key in row]


def test_steps_taken_again_after_a_restart_are_recorded_once(run_folder: Path) -> None:
    """Killed after step 4, continued from the checkpoint of step 2; then again, from step 3."""
    for first_step, steps in ((0, (1, 2, 3, 4)), (2, (3, 4)), (3, (4, 5))):
        write(run_folder, *map(training, steps), first_step=first_step, status="preempted")
    assert logged_steps(run_folder, "train/loss") == [1, 2, 3, 4, 5]
    saved = json.loads((run_folder / "wandb.json").read_text())["id"]
    assert [path.name for path in offline_files(run_folder)] == [f"run-{saved}.wandb"] * 3


def test_an_evaluation_that_was_interrupted_is_recorded_after_the_restart(run_folder: Path) -> None:
    """Its step is one that W&B has already, for the training metrics."""
    write(run_folder, training(4), status="preempted")
    write(run_folder, evaluation(4), training(5), first_step=4)
    assert logged_steps(run_folder, "eval/accuracy") == [4]
    assert logged_steps(run_folder, "train/loss") == [4, 5]


def test_a_record_that_is_new_in_part_is_sent_in_part(run_folder: Path) -> None:
    write(run_folder, training(4), training(4) | evaluation(4))
    (path,) = offline_files(run_folder)
    first, second = history(read_offline(path))
    assert "train/loss" in first
    assert "eval/loss" in second
    assert "train/loss" not in second


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"train": null}'])
def test_unreadable_marks_cost_no_record(run_folder: Path, text: str) -> None:
    (run_folder / "wandb_sent.json").write_text(text)
    write(run_folder, training(3), first_step=2)
    assert logged_steps(run_folder, "train/loss") == [3]


class Resumed:
    """What a server answers for a run it knows up to a step."""

    resumed = True

    def __init__(self, step: float) -> None:
        self.summary = {"step": step}
        self.rows: list[Record] = []

    def define_metric(self, *_: Any, **__: Any) -> None:
        pass

    def log(self, record: Record) -> None:
        self.rows.append(record)


def test_online_what_never_arrived_is_sent_again(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent up to step 9, arrived up to step 6, continued from step 5: 7 and on are new."""
    (run_folder / "wandb_sent.json").write_text('{"train": 9, "eval": 4}')
    server = Resumed(6)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", lambda **_: server)
    sink = wandb_sink("online")
    sink.start(facts(run_folder, first_step=5))
    for step in (6, 7, 8):
        sink.record(training(step))
    sink.record(evaluation(8))
    assert [row["step"] for row in server.rows] == [7, 8, 8]


def test_the_summary_holds_the_best_evaluation(run_folder: Path) -> None:
    accuracies = {1: 0.5, 2: 0.9, 3: 0.7}
    write(
        run_folder,
        *(evaluation(n) | {"eval/accuracy": a, "eval/loss": 1 - a} for n, a in accuracies.items()),
    )
    (path,) = offline_files(run_folder)
    found = summary(read_offline(path))
    assert (found["best/accuracy"], found["best/step"]) == (0.9, 2)
    assert found["best/loss"] == pytest.approx(0.1)
    assert found["eval/accuracy"] == 0.7


def test_the_best_of_earlier_tries_is_in_the_summary_too(run_folder: Path) -> None:
    best = {"best/accuracy": 0.99, "best/loss": 0.01, "best/step": 7}
    (run_folder / "summary.json").write_text(json.dumps(best | {"eval/loss": 3.0}))
    sink = wandb_sink()
    sink.start(facts(run_folder, first_step=8))
    sink.record(evaluation(9))
    (run_folder / "summary.json").unlink()  # an older best was known before it came to an end
    sink.finish("completed")
    (path,) = offline_files(run_folder)
    found = summary(read_offline(path))
    assert {key: found[key] for key in best} == best
    assert found["eval/loss"] == 0.25


def save_best(folder: Path) -> None:
    checkpoint = folder / "checkpoints" / "step_00000007"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (folder / "checkpoints" / "best").symlink_to(checkpoint.name)


@pytest.mark.parametrize(
    ("asked", "status", "uploads"),
    [(True, "completed", 1), (True, "preempted", 0), (True, "failed", 0), (False, "completed", 0)],
)
def test_the_best_checkpoint_is_an_artifact_of_a_completed_run_that_asks_for_it(
    run_folder: Path, asked: bool, status: str, uploads: int
) -> None:
    save_best(run_folder)
    sink = WandbSink(WandbConfig(mode="offline", artifacts=asked), "my run")
    sink.start(facts(run_folder))
    sink.finish(status)
    (path,) = offline_files(run_folder)
    found = [
        record.request.log_artifact.artifact if record.HasField("request") else record.artifact
        for record in read_offline(path)
        if record.HasField("artifact")
        or (record.HasField("request") and record.request.HasField("log_artifact"))
    ]
    assert len(found) == uploads
    for artifact in found:
        assert (artifact.type, artifact.name) == ("model", "my-run")
        assert {"best", "step_00000007"} <= set(artifact.aliases)
        assert [entry.path for entry in artifact.manifest.contents] == ["model.safetensors"]


def test_a_completed_run_without_a_best_checkpoint_has_no_artifact(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = WandbSink(WandbConfig(mode="offline", artifacts=True), "my run")
    sink.start(facts(run_folder))
    sink.finish("completed")
    assert warnings(caplog) == []


def test_a_run_of_a_sweep_has_the_id_its_agent_chose(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "chosen42")
    write(run_folder)
    assert json.loads((run_folder / "wandb.json").read_text()) == {"id": "chosen42"}
    (path,) = offline_files(run_folder)
    assert path.name == "run-chosen42.wandb"


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("preempted", 75), ("failed", 1)])
def test_a_run_ends_there_as_it_ended_here(run_folder: Path, status: str, code: int) -> None:
    """A preempted one is marked so: the server calls it finished only after status 0."""
    write(run_folder, status=status)
    (path,) = offline_files(run_folder)
    found = read_offline(path)
    assert [r.exit.exit_code for r in found if r.HasField("exit")] == [code]
    assert any(r.HasField("preempting") for r in found) == (status == "preempted")


def test_what_is_printed_and_shown_is_kept(run_folder: Path) -> None:
    """Lines of the run, a hook's histogram, and an evaluation that comes when it has ended."""
    sink = wandb_sink()
    sink.start(facts(run_folder))
    print("said on the way")
    sink.note(Note.of_values(4, "weights", torch.tensor([0.0, 1.0, 1.0, torch.inf])))
    sink.finish("completed")
    print("said afterwards")
    picture = io.BytesIO()
    Image.new("L", (2, 3)).save(picture, "PNG")
    shown = {"confusion_matrix": picture.getvalue()}
    run_id = show_evaluation(run_folder, sink.config, 4, {"accuracy": 0.5}, shown)
    first, second = (read_offline(path) for path in offline_files(run_folder))
    assert {r.run.run_id for r in (*first, *second) if r.HasField("run")} == {run_id}
    said = "".join(r.output_raw.line for r in first if r.HasField("output_raw"))
    assert "said on the way" in said
    assert "said afterwards" not in said
    (note,) = history(first)
    assert note["step"] == 4
    counts = note["notes/weights.values"]
    assert (counts[0], counts[-1], sum(counts)) == (1, 2, 3)
    (evaluated,) = history(second)
    assert (evaluated["evaluation/accuracy"], evaluated["step"]) == (0.5, 4)
    assert evaluated["evaluation/confusion_matrix.height"] == 3


def test_an_evaluation_of_a_run_without_wandb_is_refused(run_folder: Path) -> None:
    with pytest.raises(InputError, match=r"--wandb: .*Train it with --logging\.wandb\.mode"):
        show_evaluation(run_folder, WandbConfig(), 4, {}, {})


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
    write(run_folder)
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
    write(run_folder, training(1), mode=mode)
    assert list(run_folder.iterdir()) == []


def test_the_environment_overrides_a_mode_that_is_on(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    write(run_folder, mode="online")
    assert len(offline_files(run_folder)) == 1
    assert warnings(caplog) == []


def test_online_without_a_key_falls_back_to_offline_and_says_so(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(run_folder, training(1), mode="online")
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
        write(run_folder, training(1), mode=mode)
    (message,) = warnings(caplog)
    assert "pip install" in message


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_wandb_that_cannot_start_only_warns(
    run_folder: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("the disk\nis full")

    monkeypatch.setattr(wandb, "init", init)
    write(run_folder, training(1), mode=mode)
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
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink, broken = wandb_sink(), Broken("log")
    sink.run, sink.directory = broken, tmp_path
    for step in (1, 2, 3):
        sink.record(training(step))
    sink.finish("completed")
    assert broken.logged == 1
    (message,) = warnings(caplog)
    assert "could not record (lost)" in message


def test_an_error_while_finishing_only_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = wandb_sink()
    sink.run, sink.directory = Broken("finish"), tmp_path
    sink.record(training(1))
    sink.finish("completed")
    (message,) = warnings(caplog)
    assert "could not finish (lost)" in message
