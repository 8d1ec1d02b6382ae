"""What a run directory is continued from, who may write to it, and what lies in it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # the first optimizer imports it, and it sets an environment variable

import trainer.checkpoints.run_directory
from configs.errors import InputError
from configs.identity import digest, flatten, identity
from configs.load import load_config
from configs.schema import DataConfig, RunConfig
from configs.schema_execution import CompileConfig
from configs.schema_records import CheckpointConfig, EvaluateConfig, LoggingConfig
from configs.schema_training import ModelConfig, OptimizerConfig, TrainConfig
from tests.support.processes import ROOT, environment, wait
from trainer.build import build
from trainer.checkpoints.checkpoint import Position, step_of
from trainer.checkpoints.checkpoint_folder import list_checkpoints, save_checkpoint
from trainer.checkpoints.run_directory import Resume, RunDirectory
from trainer.loop import Run
from trainer.ranks.runtime import Runtime
from trainer.ranks.stop_signals import StopRequest

ALONE = Runtime(launcher="python")


@pytest.fixture
def opened() -> Iterator[list[RunDirectory]]:
    """Run directories whose locks are given back after the test."""
    directories: list[RunDirectory] = []
    yield directories
    for directory in directories:
        release(directory)


def release(directory: RunDirectory) -> None:
    """What the end of the process does."""
    if directory.lock is not None:
        directory.lock.close()


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(output_dir=str(tmp_path), name="run", optimizer=OptimizerConfig(lr=0.1))


def changed(config: RunConfig, *, resume: str | Path = "auto", **groups: Any) -> RunConfig:
    checkpoint = dataclasses.replace(config.checkpoint, resume=str(resume))
    return dataclasses.replace(config, checkpoint=checkpoint, **groups)


OTHER_LR = {"optimizer": OptimizerConfig(lr=0.25)}


def save(config: RunConfig, step: int) -> Path:
    return save_checkpoint(
        RunDirectory(config).checkpoints,
        {"weight": torch.full((2,), float(step))},
        {"progress": {"step": step}},
        Position(
            step=step,
            epoch=0,
            position=step,
            world_size=1,
            config_digest=digest(config),
            identity=identity(config),
        ),
        keep=9,
        is_best=False,
    )


def earlier_run(config: RunConfig, status: str, *, steps: tuple[int, ...] = (10, 20)) -> list[Path]:
    """A run directory as an earlier process left it."""
    directory = RunDirectory(config)
    directory.open(config, Resume(None, 0, []))
    paths = [save(config, step) for step in steps]
    directory.write_summary({"status": status})
    release(directory)
    return paths


def damage(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"garbage")


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_an_empty_directory_is_a_fresh_start(config: RunConfig) -> None:
    assert RunDirectory(config).decide_resume(config) == Resume(None, 0, [])
    assert not RunDirectory(config).path.exists()


@pytest.mark.parametrize("status", ["running", "preempted", "failed", "completed"])
def test_the_same_config_continues_at_the_newest_checkpoint(config: RunConfig, status: str) -> None:
    paths = earlier_run(config, status)
    assert RunDirectory(config).decide_resume(config) == Resume(paths[-1], 20, [])


@pytest.mark.parametrize(
    "groups",
    [
        {"train": TrainConfig(epochs=20)},
        {"train": TrainConfig(max_steps=99)},
        {"logging": LoggingConfig(every_steps=1)},
        {"evaluate": EvaluateConfig(batch_size=7)},
        {"data": DataConfig(workers=3)},
        {"compile": CompileConfig(enabled=False)},
    ],
    ids=lambda groups: "-".join(groups),
)
def test_a_longer_or_otherwise_executed_run_is_the_same_run(
    config: RunConfig, groups: dict[str, Any]
) -> None:
    paths = earlier_run(config, "running")
    assert RunDirectory(config).decide_resume(changed(config, **groups)).checkpoint == paths[-1]


@pytest.mark.parametrize("status", ["running", "preempted", "failed"])
def test_an_unfinished_run_with_another_config_is_refused_naming_what_differs(
    config: RunConfig, status: str
) -> None:
    earlier_run(config, status)
    with pytest.raises(InputError) as caught:
        RunDirectory(config).decide_resume(changed(config, **OTHER_LR))
    message = str(caught.value)
    assert "optimizer.lr 0.1, now 0.25" in message
    assert "optimizer.betas" not in message  # a tuple in one, a list in the other
    assert "--checkpoint.resume never" in message


def test_an_unfinished_run_without_a_summary_is_unfinished_too(config: RunConfig) -> None:
    earlier_run(config, "running")
    (RunDirectory(config).path / "summary.json").unlink()
    with pytest.raises(InputError, match="unfinished"):
        RunDirectory(config).decide_resume(changed(config, **OTHER_LR))


def test_a_finished_run_with_another_config_makes_room(
    config: RunConfig, tmp_path: Path, opened: list[RunDirectory]
) -> None:
    earlier_run(config, "completed")
    old = tree(tmp_path / "run")
    other = changed(config, **OTHER_LR)
    directory = RunDirectory(other)
    opened.append(directory)
    resume = directory.decide_resume(other)
    assert (resume.checkpoint, resume.step) == (None, 0)
    assert "optimizer.lr 0.1, now 0.25" in resume.notes[0]
    assert tree(tmp_path / "run") == old  # deciding changes nothing
    notes = directory.open(other, resume)
    assert str(tmp_path / "run.1") in notes[-1]
    assert tree(tmp_path / "run.1") == old
    assert list_checkpoints(directory.checkpoints) == []
    assert directory.status() is None


def test_runs_moved_aside_are_numbered(config: RunConfig, tmp_path: Path) -> None:
    for number in range(1, 4):
        earlier_run(changed(config, resume="never"), "completed", steps=(number,))
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert folders == ["run", "run.1", "run.2"]
    numbers = [step_of(list_checkpoints(tmp_path / f / "checkpoints")[0]) for f in folders]
    assert numbers == [3, 1, 2]


@pytest.mark.parametrize("status", ["running", "completed"])
def test_never_starts_afresh_and_keeps_the_old_run(
    config: RunConfig, tmp_path: Path, opened: list[RunDirectory], status: str
) -> None:
    earlier_run(config, status)
    old = tree(tmp_path / "run")
    fresh = changed(config, resume="never")
    directory = RunDirectory(fresh)
    opened.append(directory)
    resume = directory.decide_resume(fresh)
    assert resume == Resume(None, 0, [])
    directory.open(fresh, resume)
    assert tree(tmp_path / "run.1") == old


def test_a_broken_newest_checkpoint_is_passed_over_and_set_aside(
    config: RunConfig, opened: list[RunDirectory]
) -> None:
    paths = earlier_run(config, "running")
    damage(paths[-1])
    directory = RunDirectory(config)
    opened.append(directory)
    resume = directory.decide_resume(config)
    assert (resume.checkpoint, resume.step) == (paths[0], 10)
    assert str(paths[-1]) in resume.notes[0]
    notes = directory.open(config, resume)
    assert notes == resume.notes
    assert list_checkpoints(directory.checkpoints) == [paths[0]]
    assert os.readlink(directory.checkpoints / "latest") == paths[0].name


@pytest.mark.parametrize("given", ["runs", "link"])
def test_the_latest_link_is_right_however_the_output_folder_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: RunConfig,
    opened: list[RunDirectory],
    given: str,
) -> None:
    """`runs`, the default, is relative; a scratch disk is often reached over a link."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "link").symlink_to("runs")
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(config, output_dir=given)
    paths = earlier_run(config, "running")
    damage(paths[-1])
    directory = RunDirectory(config)
    opened.append(directory)
    directory.open(config, directory.decide_resume(config))
    assert os.readlink(directory.checkpoints / "latest") == paths[0].name
    assert (directory.checkpoints / "latest").exists()


def test_a_run_whose_checkpoints_are_all_broken_is_refused(config: RunConfig) -> None:
    paths = earlier_run(config, "running")
    for path in paths:
        damage(path)
    with pytest.raises(InputError) as caught:
        RunDirectory(config).decide_resume(config)
    assert all(str(path) in str(caught.value) for path in paths)
    assert "--checkpoint.resume never" in str(caught.value)


@pytest.mark.parametrize("other", [{}, OTHER_LR], ids=["same config", "other config"])
@pytest.mark.parametrize(
    ("below", "step"),
    [("", 20), ("checkpoints/latest", 20), ("checkpoints/step_00000010", 10)],
)
def test_an_explicit_path_may_be_a_run_a_link_or_a_checkpoint(
    config: RunConfig, tmp_path: Path, below: str, step: int, other: dict[str, Any]
) -> None:
    earlier_run(config, "running")
    given = changed(config, resume=tmp_path / "run" / below, **other)
    resume = RunDirectory(given).decide_resume(given)
    assert resume.checkpoint is not None
    assert (step_of(resume.checkpoint), resume.step) == (step, step)


def test_continuing_at_an_older_checkpoint_sets_the_newer_ones_aside(
    config: RunConfig, opened: list[RunDirectory]
) -> None:
    paths = earlier_run(config, "running", steps=(10, 20, 30))
    given = changed(config, resume=paths[0])
    directory = RunDirectory(given)
    opened.append(directory)
    directory.open(given, directory.decide_resume(given))
    assert list_checkpoints(directory.checkpoints) == [paths[0]]
    assert len(list((directory.checkpoints / "rejected").iterdir())) == 2


def test_continuing_another_run_leaves_that_run_alone(
    config: RunConfig, tmp_path: Path, opened: list[RunDirectory]
) -> None:
    paths = earlier_run(config, "running")
    old = tree(tmp_path / "run")
    given = changed(dataclasses.replace(config, name="branch"), resume=paths[0])
    directory = RunDirectory(given)
    opened.append(directory)
    directory.open(given, directory.decide_resume(given))
    assert tree(tmp_path / "run") == old
    assert list_checkpoints(directory.checkpoints) == []


def test_an_explicit_run_with_a_broken_checkpoint_falls_back_and_says_so(
    config: RunConfig, tmp_path: Path
) -> None:
    paths = earlier_run(config, "running")
    damage(paths[-1])
    given = changed(config, resume=tmp_path / "run")
    resume = RunDirectory(given).decide_resume(given)
    assert resume.step == 10
    assert str(paths[-1]) in resume.notes[0]


def nowhere(folder: Path, paths: list[Path]) -> Path:
    return folder / "typo"


def empty_folder(folder: Path, paths: list[Path]) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def a_file(folder: Path, paths: list[Path]) -> Path:
    return paths[0] / "trainer.pt"


def broken_checkpoint(folder: Path, paths: list[Path]) -> Path:
    damage(paths[1])
    return paths[1]


def broken_run(folder: Path, paths: list[Path]) -> Path:
    for path in paths:
        damage(path)
    return folder / "run"


@pytest.mark.parametrize("wrong", [nowhere, empty_folder, a_file, broken_checkpoint, broken_run])
def test_an_explicit_path_that_is_wrong_is_refused_by_name(
    config: RunConfig, tmp_path: Path, wrong: Callable[[Path, list[Path]], Path]
) -> None:
    path = wrong(tmp_path, earlier_run(config, "running"))
    given = changed(config, resume=path)
    with pytest.raises(InputError, match=r"checkpoint\.resume") as caught:
        RunDirectory(given).decide_resume(given)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("below", ["", "sub"])
def test_a_file_in_the_way_is_an_error_of_the_input(tmp_path: Path, below: str) -> None:
    (tmp_path / "taken").write_text("a file")
    config = RunConfig(output_dir=str(tmp_path / "taken" / below))
    with pytest.raises(InputError, match="cannot write") as caught:
        RunDirectory(config).open(config, Resume(None, 0, []))
    assert "--output_dir" in str(caught.value)


def test_a_file_in_the_place_of_the_run_is_an_error_of_the_input(
    tmp_path: Path, opened: list[RunDirectory]
) -> None:
    (tmp_path / "run").write_text("a file")
    config = RunConfig(output_dir=str(tmp_path), name="run")
    directory = RunDirectory(config)
    opened.append(directory)
    assert directory.decide_resume(config).checkpoint is None
    with pytest.raises(InputError, match="cannot write"):
        directory.open(config, Resume(None, 0, []))
    assert (tmp_path / "run").read_text() == "a file"


def test_a_second_writer_is_refused_and_may_come_back_later(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, opened: list[RunDirectory]
) -> None:
    monkeypatch.setattr(trainer.checkpoints.run_directory, "LOCK_SECONDS", 0.1)
    first, second, elsewhere = (
        RunDirectory(config),
        RunDirectory(config),
        RunDirectory(dataclasses.replace(config, name="other")),
    )
    opened += [first, second, elsewhere]
    first.open(config, Resume(None, 0, []))
    before = tree(first.path)
    with pytest.raises(InputError, match="another process is training"):
        second.open(config, Resume(None, 0, []))
    assert tree(first.path) == before
    elsewhere.open(config, Resume(None, 0, []))  # another run of the same folder is free
    release(first)
    second.open(config, Resume(None, 0, []))


@pytest.mark.process
def test_a_killed_process_does_not_keep_its_directory(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, opened: list[RunDirectory]
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
        opened.append(directory)
        with pytest.raises(InputError, match="another process"):
            directory.open(config, Resume(None, 0, []))
    finally:
        process.kill()
        wait(process)
    directory = RunDirectory(config)
    opened.append(directory)
    directory.open(config, Resume(None, 0, []))


def test_the_config_that_lies_in_the_directory_is_the_config_of_the_run(
    tmp_path: Path, opened: list[RunDirectory]
) -> None:
    config = RunConfig(
        output_dir=str(tmp_path),
        seed=2**62,
        model=ModelConfig(kwargs={"hidden": [24, 16], "dropout": 0.2}),
        optimizer=OptimizerConfig(lr=3e-4, betas=(0.8, 0.99), eps=1e-12),
        train=TrainConfig(clip_norm=None, ema_decay=0.999),
        checkpoint=CheckpointConfig(every_epochs=None),
    )
    directory = RunDirectory(config)
    opened.append(directory)
    directory.open(config, Resume(None, 0, []))
    path = directory.path / "config.yaml"
    found = load_config([f"--config={path}"], prog="test", description="")
    assert flatten(found) == flatten(config)


def test_the_summary_is_replaced_as_a_whole(
    config: RunConfig, opened: list[RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(config)
    opened.append(directory)
    directory.open(config, Resume(None, 0, []))
    assert directory.status() is None
    directory.write_summary({"status": "running", "step": 3})
    assert directory.status() == "running"

    def fails(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="No space"):
            directory.write_summary({"status": "completed", "step": 4})
    assert directory.status() == "running"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '"completed"'])
def test_an_unreadable_summary_says_nothing(config: RunConfig, text: str) -> None:
    earlier_run(config, "completed")
    (RunDirectory(config).path / "summary.json").write_text(text)
    assert RunDirectory(config).status() is None


@pytest.fixture
def parts(
    tmp_path: Path, idx_folder: Path, opened: list[RunDirectory]
) -> Iterator[Callable[[], Run]]:
    """Assembles a small run as the train command does."""
    precision, state = torch.get_float32_matmul_precision(), torch.get_rng_state()
    built: list[Run] = []

    def make() -> Run:
        config = RunConfig(
            name="small",
            output_dir=str(tmp_path),
            data=DataConfig(dataset="idx", root=str(idx_folder)),
            logging=LoggingConfig(progress="off"),
        )
        built.append(build(config, ALONE, StopRequest()))
        opened.append(built[-1].directory)
        return built[-1]

    yield make
    for part in built:
        part.sinks.finish("completed")
        part.checkpointer.close()
    torch.set_rng_state(state)
    torch.set_float32_matmul_precision(precision)


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
        "best/step": None,
        "skipped_steps": 0,
        "elapsed_seconds": 0,
    }
