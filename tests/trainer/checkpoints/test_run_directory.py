"""What a run directory is continued from."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.errors import InputError
from configs.schema import DataConfig, RunConfig
from configs.schema_execution import CompileConfig
from configs.schema_records import EvaluateConfig, LoggingConfig
from configs.schema_training import OptimizerConfig, TrainConfig
from tests.support.checkpoints import contents
from tests.support.run_directories import earlier_run
from trainer.beginning import claim_and_decide, decide_resume
from trainer.checkpoints.checkpoint import step_of
from trainer.checkpoints.checkpoint_folder import list_checkpoints, set_aside_newer
from trainer.checkpoints.object_store import ObjectStore
from trainer.checkpoints.run_directory import Resume, RunDirectory
from trainer.ranks.runtime import Runtime

ALONE = Runtime(launcher="python")


def changed(config: RunConfig, *, resume: str | Path = "auto", **groups: Any) -> RunConfig:
    checkpoint = dataclasses.replace(config.checkpoint, resume=str(resume))
    return dataclasses.replace(config, checkpoint=checkpoint, **groups)


OTHER_LR = {"optimizer": OptimizerConfig(lr=0.25)}


def damage(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"garbage")


def test_an_empty_directory_is_a_fresh_start(config: RunConfig) -> None:
    assert decide_resume(config, RunDirectory(config)) == Resume(None, 0, [])
    assert not RunDirectory(config).path.exists()


@pytest.mark.parametrize("status", ["running", "preempted", "failed", "completed"])
def test_the_same_config_continues_at_the_newest_checkpoint(config: RunConfig, status: str) -> None:
    paths = earlier_run(config, status)
    assert decide_resume(config, RunDirectory(config)) == Resume(paths[-1], 20, [])


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
    assert decide_resume(changed(config, **groups), RunDirectory(config)).checkpoint == paths[-1]


@pytest.mark.parametrize("status", ["running", "preempted", "failed"])
def test_an_unfinished_run_with_another_config_is_refused_naming_what_differs(
    config: RunConfig, status: str
) -> None:
    earlier_run(config, status)
    with pytest.raises(InputError) as caught:
        decide_resume(changed(config, **OTHER_LR), RunDirectory(config))
    message = str(caught.value)
    assert "optimizer.lr 0.1, now 0.25" in message
    assert "optimizer.betas" not in message  # a tuple in one, a list in the other
    assert "--checkpoint.resume never" in message


def test_an_unfinished_run_without_a_summary_is_unfinished_too(config: RunConfig) -> None:
    earlier_run(config, "running")
    (RunDirectory(config).path / "summary.json").unlink()
    with pytest.raises(InputError, match="unfinished"):
        decide_resume(changed(config, **OTHER_LR), RunDirectory(config))


def test_a_finished_run_with_another_config_makes_room(config: RunConfig, tmp_path: Path) -> None:
    earlier_run(config, "completed")
    old = contents(tmp_path / "run")
    other = changed(config, **OTHER_LR)
    directory = RunDirectory(other)
    resume = decide_resume(other, directory)
    assert (resume.checkpoint, resume.step) == (None, 0)
    assert "optimizer.lr 0.1, now 0.25" in resume.notes[0]
    assert contents(tmp_path / "run") == old  # deciding changes nothing
    notes = directory.open(other, resume)
    assert str(tmp_path / "run.1") in notes[-1]
    assert contents(tmp_path / "run.1") == old
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
    config: RunConfig, tmp_path: Path, status: str
) -> None:
    earlier_run(config, status)
    old = contents(tmp_path / "run")
    fresh = changed(config, resume="never")
    directory = RunDirectory(fresh)
    resume = decide_resume(fresh, directory)
    assert resume == Resume(None, 0, [])
    directory.open(fresh, resume)
    assert contents(tmp_path / "run.1") == old


@pytest.mark.parametrize("given", [".", "runs", "link"])
def test_a_broken_newest_checkpoint_is_passed_over_and_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: RunConfig, given: str
) -> None:
    """Law: the link is right however the output folder is written: `runs`, the default, is
    relative; a scratch disk is often reached over a link."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "link").symlink_to("runs")
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(config, output_dir=str(tmp_path) if given == "." else given)
    paths = earlier_run(config, "running")
    damage(paths[-1])
    directory = RunDirectory(config)
    resume = decide_resume(config, directory)
    assert (resume.checkpoint, resume.step) == (paths[0], 10)
    assert str(paths[-1]) in resume.notes[0]
    assert directory.open(config, resume) == resume.notes
    assert list_checkpoints(directory.checkpoints) == [paths[0]]
    assert os.readlink(directory.checkpoints / "latest") == paths[0].name
    assert (directory.checkpoints / "latest").exists()


def test_a_run_whose_checkpoints_are_all_broken_is_refused(config: RunConfig) -> None:
    paths = earlier_run(config, "running")
    for path in paths:
        damage(path)
    with pytest.raises(InputError) as caught:
        decide_resume(config, RunDirectory(config))
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
    resume = decide_resume(given, RunDirectory(given))
    assert resume.checkpoint is not None
    assert (step_of(resume.checkpoint), resume.step) == (step, step)


def test_continuing_at_an_older_checkpoint_sets_the_newer_ones_aside(config: RunConfig) -> None:
    paths = earlier_run(config, "running", steps=(10, 20, 30))
    given = changed(config, resume=paths[0])
    directory = RunDirectory(given)
    directory.open(given, decide_resume(given, directory))
    assert list_checkpoints(directory.checkpoints) == [paths[0]]
    assert len(list((directory.checkpoints / "rejected").iterdir())) == 2


def test_continuing_another_run_leaves_that_run_alone(config: RunConfig, tmp_path: Path) -> None:
    paths = earlier_run(config, "running")
    old = contents(tmp_path / "run")
    given = changed(dataclasses.replace(config, name="branch"), resume=paths[0])
    directory = RunDirectory(given)
    directory.open(given, decide_resume(given, directory))
    assert contents(tmp_path / "run") == old
    assert list_checkpoints(directory.checkpoints) == []


@pytest.mark.parametrize("below", [None, "", "checkpoints/latest"])
def test_a_start_reads_every_file_once_to_verify_it(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str | None
) -> None:
    """Law: of the checkpoint that it takes, be it from storage, and of each that it passes over."""
    config = changed(config, resume="auto" if below is None else tmp_path / "run" / below)
    paths = earlier_run(config, "running")
    if below is None:
        store = f"file://{tmp_path / 'store'}"
        checkpoint = dataclasses.replace(config.checkpoint, upload=store)
        config = dataclasses.replace(config, checkpoint=checkpoint)
        ObjectStore(store, config.name).put(paths.pop())
        set_aside_newer(RunDirectory(config).checkpoints, paths[-1], best_step=0)
    digest, read = hashlib.file_digest, Counter[tuple[str, str]]()

    def counted(file: Any, name: str) -> Any:
        read[Path(file.name).parent.name, Path(file.name).name] += 1
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    directory = RunDirectory(config)
    resume = claim_and_decide(config, directory)
    directory.open(config, resume)
    directory.release()
    assert resume.step == 20
    assert set(read.values()) == {1}
    folders = {"step_00000010", ".writing-step_00000020"} if below is None else {"step_00000020"}
    assert read.keys() == {(f, n) for f in folders for n in ("model.safetensors", "trainer.pt")}


def test_an_explicit_run_with_a_broken_checkpoint_falls_back_and_says_so(
    config: RunConfig, tmp_path: Path
) -> None:
    paths = earlier_run(config, "running")
    damage(paths[-1])
    given = changed(config, resume=tmp_path / "run")
    resume = decide_resume(given, RunDirectory(given))
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
        decide_resume(given, RunDirectory(given))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("below", ["", "sub"])
def test_a_file_in_the_way_is_an_error_of_the_input(tmp_path: Path, below: str) -> None:
    (tmp_path / "taken").write_text("a file")
    config = RunConfig(output_dir=str(tmp_path / "taken" / below))
    with pytest.raises(InputError, match="cannot write") as caught:
        RunDirectory(config).open(config, Resume(None, 0, []))
    assert "--output_dir" in str(caught.value)


def test_a_file_in_the_place_of_the_run_is_an_error_of_the_input(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    config = RunConfig(output_dir=str(tmp_path), name="run")
    directory = RunDirectory(config)
    assert decide_resume(config, directory).checkpoint is None
    with pytest.raises(InputError, match="cannot write"):
        directory.open(config, Resume(None, 0, []))
    assert (tmp_path / "run").read_text() == "a file"
