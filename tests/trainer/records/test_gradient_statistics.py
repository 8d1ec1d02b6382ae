"""logging.gradients: norms and ratios of the step that was really taken, and no other effect."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # the first optimizer imports it, and it sets an environment variable
from torch import nn

from tests.support.processes import train
from tests.support.runs import assert_same_bits, records
from trainer.records.gradient_statistics import GradientLog

Arguments = Callable[..., list[str]]


def one_step(module: nn.Module, log: GradientLog, *, step: int = 0, lr: float = 0.1) -> None:
    """Plain SGD on the sum of all weights times 1, 2, 3, ...: the gradient is known."""
    module.zero_grad()
    parameters = [p for p in module.parameters() if p.requires_grad]
    sum((p * (i + 1)).sum() for i, p in enumerate(parameters)).backward()  # type: ignore[union-attr]
    log.prepare(step)
    torch.optim.SGD(parameters, lr=lr).step()


def test_norm_and_ratio_are_those_of_the_step() -> None:
    module = nn.Linear(3, 2)
    nn.init.constant_(module.weight, 0.5)
    nn.init.constant_(module.bias, -2.0)
    log = GradientLog(module, 1)
    one_step(module, log)
    assert log.measure() == pytest.approx(
        {
            "gradients/weight/norm": math.sqrt(6),
            "gradients/weight/update_ratio": 0.1 / 0.5,
            "gradients/bias/norm": 2 * math.sqrt(2),
            "gradients/bias/update_ratio": 0.2 / 2.0,
        }
    )


def test_weights_that_were_zero_are_compared_with_what_they_became() -> None:
    module = nn.Linear(3, 2)
    nn.init.zeros_(module.bias)
    log = GradientLog(module, 1)
    one_step(module, log)
    assert log.measure()["gradients/bias/update_ratio"] == 1.0
    one_step(module, log, lr=0.0)
    assert log.measure()["gradients/bias/update_ratio"] == 0.0


def test_what_has_no_gradient_is_left_out() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    log = GradientLog(module, 1)
    log.prepare(0)
    assert log.measure() == {}
    one_step(module, log)
    assert {key.split("/")[1] for key in log.measure()} == {"1.weight", "1.bias"}


@pytest.mark.parametrize(("every", "due"), [(None, []), (1, [1, 2, 3, 4]), (3, [3])])
def test_it_watches_every_nth_step_only(every: int | None, due: list[int]) -> None:
    log = GradientLog(nn.Linear(1, 1), every)
    found = []
    for step in range(4):
        log.prepare(step)
        found += [step + 1] if log.watching else []
    assert found == due


def test_a_step_that_was_skipped_is_forgotten() -> None:
    """fp16: the step is tried again, and only what the last try moved counts."""
    module = nn.Linear(1, 1)
    log = GradientLog(module, 1)
    log.prepare(0)
    nn.init.constant_(module.weight, 7.0)
    one_step(module, log)
    assert log.measure()["gradients/weight/update_ratio"] == pytest.approx(0.1 / 7.0)


def gradient_records(run: Path) -> list[dict[str, Any]]:
    return [r for r in records(run) if any(key.startswith("gradients/") for key in r)]


@pytest.mark.process
def test_a_run_records_them_and_is_otherwise_the_same(small: Arguments, tmp_path: Path) -> None:
    """The same bits with and without; the norms make up the global one; the screen shows none."""
    extra = ("--train.max_steps=6", "--train.clip_norm=1e9", "--logging.progress=plain")
    finished = train(*small("with", *extra, "--logging.gradients=2"))
    train(*small("without", *extra))
    assert_same_bits(tmp_path / "with", tmp_path / "without")
    assert gradient_records(tmp_path / "without") == []
    assert "gradients" not in finished.stdout
    found = gradient_records(tmp_path / "with")
    assert [record["step"] for record in found] == [2, 4, 6]
    total = {r["step"]: r["train/grad_norm"] for r in records(tmp_path / "with") if "train/lr" in r}
    for record in found:
        names = {key.split("/")[1] for key in record if key.startswith("gradients/")}
        assert len(names) == 6
        norms = [record[f"gradients/{name}/norm"] for name in names]
        assert math.hypot(*norms) == pytest.approx(total[record["step"]], rel=1e-4)
        assert all(0 < record[f"gradients/{name}/update_ratio"] < 2 for name in names)


@pytest.mark.slow
@pytest.mark.process
def test_two_ranks_record_what_one_records(small: Arguments, tmp_path: Path) -> None:
    for ranks in (1, 2):
        extra = ("--model.kwargs.dropout=0", "--train.max_steps=3", "--logging.gradients=3")
        train(*small(f"ranks{ranks}", *extra), ranks=ranks)
    (one,), (two,) = (gradient_records(tmp_path / f"ranks{ranks}") for ranks in (1, 2))
    keys = {key for key in one if key.startswith("gradients/")}
    assert {k: two[k] for k in keys} == pytest.approx({k: one[k] for k in keys}, rel=1e-3)
