"""A trainer.pt that somebody has edited, its digests right, is refused in one message."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from configs.errors import InputError
from launch.train import main
from tests.support.checkpoints import sign
from tests.support.runs import train_here
from tests.support.subjects import ALONE
from trainer.checkpoints.checkpoint import load_checkpoint, verify_checkpoint
from trainer.checkpoints.finite import are_finite
from trainer.checkpoints.saved_state import check_module
from trainer.networks.module_state import check_buffers

ONE = torch.zeros(1)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory, idx_folder: Path) -> Path:
    """A run with an average and an optimizer that remembers."""
    return train_here(
        tmp_path_factory.mktemp("small"), idx_folder, "--train.max_steps=3", "--train.ema_decay=0.9"
    )


def tamper(run: Path, folder: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the run whose latest trainer.pt has been edited, and verifies."""
    copy = Path(shutil.copytree(run, folder / "run", symlinks=True))
    checkpoint = (copy / "checkpoints/latest").resolve()
    state = torch.load(checkpoint / "trainer.pt", weights_only=True)
    edit(state)
    torch.save(state, checkpoint / "trainer.pt")
    sign(checkpoint)
    verify_checkpoint(checkpoint)
    return copy


def resume(run: Path, data: Path) -> int:
    arguments = [f"--config={run / 'config.yaml'}", f"--output_dir={run.parent}", "--name=run"]
    return main([*arguments, "--train.max_steps=5", f"--data.root={data}"])


def drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    def edit(state: Any) -> None:
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return edit


def put(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    def edit(state: Any) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return edit


EDITS = {
    "no progress": drop("progress"),
    "no step": drop("progress", "step"),
    "step of text": put("x", "progress", "step"),
    "step below 0": put(-1, "progress", "step"),
    "a far window": put(10**12, "progress", "window"),
    "unknown progress": put(1, "progress", "__class__"),
    "metrics of text": put({"loss": "x"}, "progress", "metrics"),
    "metrics no mapping": put([], "progress", "metrics"),
    "elapsed not a number": put(float("nan"), "progress", "elapsed_seconds"),
    "a switch of 2": put(2, "progress", "evaluation_due"),
    "a best of tomorrow": put(99, "progress", "best_step"),
    "an exp_avg_sq that is missing": drop("optimizer", "state", 1, "exp_avg_sq"),
    "an exp_avg_sq of nothing": put(None, "optimizer", "state", 1, "exp_avg_sq"),
    "half a step of an optimizer": put(torch.tensor(1.5), "optimizer", "state", 0, "step"),
    "another step": lambda s: s["progress"].update(step=2, window=2),
    "no optimizer": drop("optimizer"),
    "optimizer no mapping": put([], "optimizer"),
    "no state": drop("optimizer", "state"),
    "exp_avg of a wrong shape": put(torch.zeros(3), "optimizer", "state", 0, "exp_avg"),
    "exp_avg no tensor": put("x", "optimizer", "state", 0, "exp_avg"),
    "step of an optimizer": put(torch.zeros(3), "optimizer", "state", 0, "step"),
    "a step not finite": put(torch.tensor(float("nan")), "optimizer", "state", 0, "step"),
    "state of nobody": put({}, "optimizer", "state", 99),
    "no groups": put([], "optimizer", "param_groups"),
    "another class": put("SGD", "optimizer_class"),
    "no class": drop("optimizer_class"),
    "no ranks": drop("ranks"),
    "ranks empty": put([], "ranks"),
    "ranks no list": put({}, "ranks"),
    "rank no mapping": put(1, "ranks", 0),
    "no meter": drop("ranks", 0, "meter"),
    "meter uneven": put(torch.zeros(7), "ranks", 0, "meter", "losses"),
    "meter of tomorrow": put([99] * 1, "ranks", 0, "meter", "windows"),
    "no rng": drop("ranks", 0, "rng"),
    "rng short": put(torch.zeros(3, dtype=torch.uint8), "ranks", 0, "rng", "torch"),
    "python short": put([3, torch.zeros(4, dtype=torch.int64), None], "ranks", 0, "rng", "python"),
    "python version": put(
        [9, torch.zeros(625, dtype=torch.int64), None], "ranks", 0, "rng", "python"
    ),
    "numpy no list": put(1, "ranks", 0, "rng", "numpy"),
    "device": put(7, "device_type"),
    "buffers": put({1: 2}, "buffers"),
    "schedule": put([], "schedule"),
    "average short": put({"layers.1.weight": ONE}, "ema"),
    "average no mapping": put(ONE, "ema"),
    "average of text": put({"layers.1.weight": "x"}, "ema"),
    "more than the file": put(ONE.expand(10**12), "ranks", 0, "meter", "losses"),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_state_is_refused(
    what: str, small_run: Path, tmp_path: Path, idx_folder: Path
) -> None:
    """Law: one message, whatever was edited; nothing is taken in silence."""
    run = tamper(small_run, tmp_path, EDITS[what])
    with pytest.raises(InputError, match=r"does not fit this run|cannot be read"):
        resume(run, idx_folder)


SCHEDULES = {
    "a method in the way": put("x", "schedule", "scheduler", "step"),
    "a text for a number": put("x", "schedule", "scheduler", "num_bad_epochs"),
    "a shorter list": put([], "schedule", "scheduler", "_last_lr"),
    "another constant": put(["x"], "schedule", "scheduler", "min_lrs"),
    "a rate of text": put("x", "schedule", "group", "lr"),
    "a count below 0": put(-(10**12), "schedule", "count"),
    "no scheduler": drop("schedule", "scheduler"),
}


@pytest.mark.parametrize("what", SCHEDULES)
def test_an_edited_scheduler_is_refused_or_taken_without_them(
    what: str, tmp_path: Path, idx_folder: Path
) -> None:
    arguments = ["--schedule.name=ReduceLROnPlateau", "--train.max_steps=3"]
    run = tamper(train_here(tmp_path / "first", idx_folder, *arguments), tmp_path, SCHEDULES[what])
    if what in ("a method in the way", "another constant"):
        assert resume(run, idx_folder) == 0
    else:
        with pytest.raises(InputError, match="does not fit this run"):
            resume(run, idx_folder)


def test_a_state_that_nobody_edited_continues(
    small_run: Path, tmp_path: Path, idx_folder: Path
) -> None:
    """The test above is about the edits, and not about how they are made."""
    run = tamper(small_run, tmp_path, lambda state: None)
    assert resume(run, idx_folder) == 0


def test_a_state_that_unfolds_to_more_than_its_file_is_refused(
    small_run: Path, tmp_path: Path
) -> None:
    run = tamper(small_run, tmp_path, lambda state: None)
    checkpoint = (run / "checkpoints/latest").resolve()
    path = checkpoint / "trainer.pt"
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match="compressed"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("persistent", [True, False])
def test_what_no_checkpoint_holds_is_refused_before_the_first_step(persistent: bool) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("graph", torch.eye(2).to_sparse(), persistent=persistent)
    with pytest.raises(
        InputError, match=r"graph of the model: given 'a tensor of torch.sparse_coo"
    ):
        check_module(model)
    model.register_buffer("graph", torch.zeros(2, dtype=torch.complex128), persistent=persistent)
    if persistent:
        with pytest.raises(InputError, match=r"torch\.complex128"):
            check_module(model)
    else:
        check_module(model)  # trainer.pt has it


def test_numbers_of_a_byte_can_be_asked_whether_they_are_finite() -> None:
    value = torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn)
    assert are_finite([value, torch.ones(2)])
    assert not are_finite([value, torch.tensor([float("nan")]).to(torch.float8_e4m3fn)])


def test_buffers_that_ranks_cannot_give_to_each_other_are_refused_by_name() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("short", torch.zeros(2, dtype=torch.int16))
    check_buffers(model, ALONE)
    with pytest.raises(InputError, match=r"buffer short of the model: given 'torch.int16'"):
        check_buffers(model, replace(ALONE, world_size=2))
