"""The peers of the language model train what Convoy trains: same loss, same steps, same rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.measure.contenders import PEERS, TEXT
from benchmarks.measure.peers import show_text, summarise
from benchmarks.measure.run_times import read_run
from benchmarks.peers import text_common
from benchmarks.run import parse
from configs.load import load_config
from data.formats.tokens import TokenWindows
from tests.support.runs import latest_weights, series
from trainer.components import build_plan
from trainer.networks.models import build_model
from trainer.optim.schedule import SHAPES, PureSchedule
from trainer.ranks.runtime import Runtime


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> int:
    """So that the warm-up ends and the cosine falls within a few steps."""
    monkeypatch.setitem(text_common.RECIPE["schedule"], "warmup_steps", 2)
    return 5


def test_losses_and_weights_are_those_of_the_plain_loop(
    few_steps: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: from the same weights and on the same batches, five steps of text_common's parts."""
    from launch.train import main

    options = [
        "--config=gpt_chars",
        f"--output_dir={tmp_path}",
        "--name=run",
        f"--train.max_steps={few_steps}",
        "--schedule.warmup_steps=2",
        "--logging.every_steps=1",
        "--logging.progress=off",
        "--parallel.device=cpu",
    ]
    assert main(options) == 0
    config = load_config(options, prog="", description="")
    train, test, vocabulary = text_common.load_text()
    model = build_model(config.model, input_shape=(128,), num_classes=vocabulary, seed=0)
    plan = build_plan(config, Runtime(launcher="test"), len(train))
    optimizer = text_common.adamw(model)
    schedule = text_common.cosine(optimizer, few_steps)
    losses = []
    for step in range(few_steps):
        chosen = torch.tensor(plan.samples(step))
        loss = text_common.token_loss(model(train.inputs[chosen]), train.targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), text_common.CLIP)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert series(tmp_path / "run", "train/loss") == pytest.approx(losses, rel=1e-4)
    for name, weight in latest_weights(tmp_path / "run").items():
        moved = model.state_dict()[name]
        assert (weight - moved).norm() < 1e-3 * moved.norm(), name
    found = text_common.test_loss(model, test, torch.device("cpu"))
    assert series(tmp_path / "run", "eval/loss") == pytest.approx([found[0]], rel=1e-3)
    described = read_run(tmp_path / "run", started_at=0.0)
    assert described["test_loss"] == pytest.approx(found[0], rel=1e-3)
    assert described["test_accuracy"] == pytest.approx(found[1], abs=1e-3)
    facts = {"peak_memory_bytes": 1 << 20, "first_step_seconds": 1.0}
    result = summarise(TEXT[0], {"text": [described | facts]})
    show_text([result | {"reason": None}], tokens=1000)
    shown = capsys.readouterr().out
    assert f"{described['test_loss']:.4f}" in shown
    assert f"{1000 / result['epoch_seconds']['median']:,.0f}" in shown


def test_rates_are_those_of_the_recipe() -> None:
    config = load_config(["--config=gpt_chars"], prog="", description="")
    total, peak = 824, config.optimizer.lr

    class Epochs:
        def epochs(self, step: int) -> float:
            return 0.0

    epochs: Any = Epochs()
    ours = PureSchedule(SHAPES["cosine"], config.schedule, peak, total, epochs)
    optimizer = text_common.adamw(torch.nn.Linear(2, 2))
    schedule = text_common.cosine(optimizer, total)
    for step in range(total):
        assert schedule.get_last_lr()[0] == pytest.approx(ours(step), rel=1e-6)
        optimizer.step()
        schedule.step()


def test_every_contender_is_a_program_or_a_recipe(tmp_path: Path) -> None:
    assert parse(["--text", "--quick"]).kind == "text"
    for contender in TEXT:
        assert contender.against == TEXT[0].name
        if contender.program is not None:
            assert (PEERS / contender.program).is_file()
        else:
            assert contender.config == "gpt_chars"


def test_windows_are_those_of_the_data_set() -> None:
    from data.datasets import load_datasets

    config = load_config(["--config=gpt_chars"], prog="", description="")
    data = load_datasets(config.data, seed=0).train
    assert isinstance(data, TokenWindows)
    train, _, vocabulary = text_common.load_text(5)
    assert (len(train), vocabulary) == (5, 75)
    assert all(torch.equal(a, b) for i in range(5) for a, b in zip(train[i], data[i], strict=True))
