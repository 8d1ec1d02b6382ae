"""Who may write to a run directory, and what lies in it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import trainer.checkpoints.run_directory
from configs.errors import InputError
from configs.identity import flatten
from configs.load import load_config
from configs.schema import DataConfig, RunConfig
from configs.schema_model import ModelConfig
from configs.schema_records import CheckpointConfig, LoggingConfig
from configs.schema_training import OptimizerConfig, TrainConfig
from tests.support.checkpoints import contents
from tests.support.processes import ROOT, environment, wait
from tests.support.run_directories import earlier_run
from trainer.build import build
from trainer.checkpoints.run_directory import Resume, RunDirectory
from trainer.loop import Run
from trainer.ranks.runtime import Runtime
from trainer.ranks.stop_signals import StopRequest

ALONE = Runtime(launcher="python")


def test_a_second_writer_is_refused_and_may_come_back_later(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.checkpoints.run_directory, "LOCK_SECONDS", 0.1)
    first, second, elsewhere = (
        RunDirectory(config),
        RunDirectory(config),
        RunDirectory(dataclasses.replace(config, name="other")),
    )
    first.open(config, Resume(None, 0, []))
    before = contents(first.path)
    with pytest.raises(InputError, match="another process is training"):
        second.open(config, Resume(None, 0, []))
    assert contents(first.path) == before
    elsewhere.open(config, Resume(None, 0, []))  # another run of the same folder is free
    first.release()
    second.open(config, Resume(None, 0, []))


@pytest.mark.process
def test_a_killed_process_does_not_keep_its_directory(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"""
        import sys, time
        from configs.schema import RunConfig
        from trainer.checkpoints.run_directory import Resume, RunDirectory
        config = RunConfig(output_dir={config.output_dir!r}, name={config.name!r})
        directory = RunDirectory(config)
        directory.open(config, Resume(None, 0, []))
        print("mine", flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        monkeypatch.setattr(trainer.checkpoints.run_directory, "LOCK_SECONDS", 0.1)
        directory = RunDirectory(config)
        with pytest.raises(InputError, match="another process"):
            directory.open(config, Resume(None, 0, []))
    finally:
        process.kill()
        wait(process)
    directory = RunDirectory(config)
    directory.open(config, Resume(None, 0, []))


def test_the_config_that_lies_in_the_directory_is_the_config_of_the_run(tmp_path: Path) -> None:
    config = RunConfig(
        output_dir=str(tmp_path),
        seed=2**62,
        model=ModelConfig(kwargs={"hidden": [24, 16], "dropout": 0.2}),
        optimizer=OptimizerConfig(lr=3e-4, betas=(0.8, 0.99), eps=1e-12),
        train=TrainConfig(clip_norm=None, ema_decay=0.999),
        checkpoint=CheckpointConfig(every_epochs=None),
    )
    directory = RunDirectory(config)
    directory.open(config, Resume(None, 0, []))
    path = directory.path / "config.yaml"
    found = load_config([f"--config={path}"], prog="test", description="")
    assert flatten(found) == flatten(config)


def test_the_summary_is_replaced_as_a_whole(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(config)
    directory.open(config, Resume(None, 0, []))
    assert directory.status() is None
    directory.write_summary({"status": "running", "step": 3})
    assert directory.status() == "running"

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises(OSError, match="No space"):
            directory.write_summary({"status": "running", "step": 4})
        assert directory.status() == "running"
        assert json.loads((directory.path / "summary.json").read_text())["step"] == 3
        directory.write_summary({"status": "completed", "step": 4})  # into the room of the other
    assert directory.status() == "completed"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '"completed"'])
def test_an_unreadable_summary_says_nothing(config: RunConfig, text: str) -> None:
    earlier_run(config, "completed")
    (RunDirectory(config).path / "summary.json").write_text(text)
    assert RunDirectory(config).status() is None


@pytest.fixture
def parts(tmp_path: Path, idx_folder: Path) -> Iterator[Callable[[], Run]]:
    """Assembles a small run as the train command does."""
    built: list[Run] = []

    def make() -> Run:
        config = RunConfig(
            name="small",
            output_dir=str(tmp_path),
            data=DataConfig(dataset="idx", root=str(idx_folder)),
            logging=LoggingConfig(progress="off"),
        )
        built.append(build(config, ALONE, StopRequest()))
        return built[-1]

    yield make
    for part in built:
        part.sinks.finish("completed")
        part.checkpointer.close()


def test_a_run_that_is_assembled_has_described_itself(
    parts: Callable[[], Run], tmp_path: Path
) -> None:
    made = parts()
    made.log.summary("running")
    folder = tmp_path / "small"
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "environment.json",
        "model.json",
        "metrics.jsonl",
        "summary.json",
        "checkpoints",
    }
    summary = json.loads((folder / "summary.json").read_text())
    assert summary | {"elapsed_seconds": 0} == {
        "status": "running",
        "name": "small",
        "step": 0,
        "epoch": 0.0,
        "eval/accuracy": None,
        "eval/loss": None,
        "best/accuracy": None,
        "best/loss": None,
        "selected_on": "test",
        "selected_by": "accuracy",
        "higher_is_better": {"loss": False, "accuracy": True, "correct": True},
        "best/step": None,
        "skipped_steps": 0,
        "elapsed_seconds": 0,
    }
