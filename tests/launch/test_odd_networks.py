"""What trainers get wrong in silence: right here, or refused. One rank in this process, and two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import InputError
from tests.support.odd_runs import CHANGING, ODD, arguments, run
from tests.support.processes import launch, train
from tests.support.runs import assert_same_bits, comparable, latest_weights, records, series
from trainer.checkpoints.checkpoint import load_checkpoint
from trainer.ranks.failures import Diverged, RunFailed


def status(folder: Path) -> str:
    return str(json.loads((folder / "run" / "summary.json").read_text())["status"])


# -- numbers that are not finite ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model.kwargs={at: 9}",), "after step 9 the weight a.weight is not finite"),
        (("--model.kwargs={at: 6}",), "after step 6 the weight a.weight is not finite"),
        (("--model.kwargs={at: 5}",), "the loss of step 6 is not finite"),
        (("--model.kwargs={at: 9}", "--train.ema_decay=0.9"), "is not finite"),
        (("--model.kwargs={at: 4}", "--train.clip_norm=1", "--checkpoint.every_steps=4"), "step 4"),
        (("--model.kwargs={at: 9}", "--precision.dtype=bf16"), "after step 9 the weight"),
        (("--model.kwargs={at: 9}", "--parallel.reduction=exact", "--parallel.shards=1"), "step 9"),
    ],
)
def test_weights_that_are_not_finite_are_neither_saved_nor_evaluated(
    options: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    """Law: the last step is checked too; all that was saved and called best is finite."""
    with pytest.raises(Diverged, match=words):
        run(tmp_path, "BadGradient", *options)
    assert status(tmp_path) == "failed"
    for path in (tmp_path / "run" / "checkpoints").glob("step_*"):
        weights, _ = load_checkpoint(path)
        assert all(value.isfinite().all() for value in weights.values())
    losses = series(tmp_path / "run", "eval/loss")
    assert losses == [loss for loss in losses if loss == loss]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("{train: 77}", r"loss of step \d is not finite, because training sample 77 holds"),
        ("{test: 5}", "test sample 5 holds values that are not finite, so neither is any metric"),
    ],
)
def test_a_sample_that_is_not_finite_is_named(bad: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=words):
        run(tmp_path, "Base", f"--data.kwargs={{bad: {bad}}}")
    assert status(tmp_path) == "failed"
    assert not series(tmp_path / "run", "eval/loss")


def test_the_range_test_names_the_sample_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from launch.find_lr import main as find_lr

    bad = "--data.kwargs={num_train: 640, bad: {train: 77}}"
    more = ("--lr_finder.steps=30", f"--output={tmp_path / 'curve.png'}", bad)
    assert find_lr([*arguments(tmp_path, "Base"), *more]) == 1
    said = capsys.readouterr()
    assert "training sample 77 holds values that are not" in said.out
    assert "Repair or drop it in the data set" in said.err


def test_fp16_skips_such_a_step_and_records_nothing_for_it(tmp_path: Path) -> None:
    """Law: a record without a step that was taken has no loss, rather than 0."""
    folder = run(tmp_path, "BadGradient", "--model.kwargs={at: 9}", "--precision.dtype=fp16")
    last = [record for record in records(folder) if "train/lr" in record][-1]
    assert last["train/skipped_steps"] == 1
    assert "train/loss" not in last
    assert "train/accuracy" not in last
    assert status(tmp_path) == "completed"


def test_a_mask_that_is_infinite_on_purpose_is_no_fault(tmp_path: Path) -> None:
    run(tmp_path, "Masked")


def test_a_restart_goes_back_to_a_checkpoint_whose_numbers_are_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Law: of runs that earlier versions left, which saved NaN and said nothing of it."""
    import trainer.checkpoints.checkpoint as module

    folder = run(tmp_path, "Base", "--train.max_steps=3")
    [good] = (folder / "checkpoints").glob("step_*")
    weights, trainer = load_checkpoint(good)
    manifest = module.verify_checkpoint(good)
    names = module.Position.__dataclass_fields__
    position = module.Position(**{n: manifest[n] for n in names} | {"step": 5})
    weights["a.bias"] = weights["a.bias"] * torch.nan
    trainer["progress"]["step"] = 5
    dumps = module.json.dumps

    def without(value: Any, **options: Any) -> str:
        if isinstance(value, dict):
            value.pop("finite", None)
        return dumps(value, **options)

    bad = good.with_name("step_00000005")
    with monkeypatch.context() as patch:
        patch.setattr(module.json, "dumps", without)
        module.write_checkpoint(bad, weights, trainer, position)
    with caplog.at_level("INFO", logger="convoy"):
        run(tmp_path, "Base")
    assert "step_00000005 rejected: a.bias is not a number" in caplog.text
    assert f"continuing from {good}" in caplog.text
    assert records(folder)[-1]["step"] == 9


# -- state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["Counting", "Remembering", "Rebound", "FrozenParts"])
def test_a_run_that_is_continued_remembers_what_the_model_does(model: str, tmp_path: Path) -> None:
    """Law: buffers outside the state dict and extra state are continued bit for bit."""
    whole = run(tmp_path / "whole", model)
    run(tmp_path / "cut", model, "--train.max_steps=4")
    cut = run(tmp_path / "cut", model)
    ours, theirs = (load_checkpoint(f / "checkpoints/latest") for f in (whole, cut))
    for name, value in ours[0].items():
        same = torch.equal(value, theirs[0][name]) if isinstance(value, torch.Tensor) else True
        assert same, name
    last = comparable(whole)[-1]
    assert last == comparable(cut)[-1]
    assert last["eval/loss"] == series(cut, "eval/loss")[-1]


@pytest.mark.parametrize("model", ["Counting", "Remembering"])
def test_what_a_trained_run_says_is_what_its_evaluation_said(model: str, tmp_path: Path) -> None:
    from launch.evaluate import main as evaluate

    folder = run(tmp_path, model)
    assert evaluate([str(folder), "--checkpoint=latest", "--mistakes=0", "--trust_code"]) == 0
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["loss"] == pytest.approx(series(folder, "eval/loss")[-1], rel=1e-6)


def test_extra_state_that_no_checkpoint_can_hold_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"_extra_state of the model: given .*weights_only=True"):
        run(tmp_path, "Unsaveable")
    assert not list(tmp_path.iterdir())


# -- modes ----------------------------------------------------------------------------------------


def test_parts_in_eval_mode_stay_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Law: through training, evaluation and a restart; and the run says how many."""
    with caplog.at_level("INFO", logger="convoy"):
        run(tmp_path, "FrozenParts", "--train.max_steps=4", "--train.ema_decay=0.9")
    assert "2 modules of the model stay in eval mode" in caplog.text
    folder = run(tmp_path, "FrozenParts", "--train.ema_decay=0.9")
    weights = latest_weights(folder)
    assert torch.equal(weights["norm.running_mean"], torch.zeros(16))
    assert weights["norm.num_batches_tracked"] == 0
    assert series(folder, "train/loss")[-1] < 0.6 * series(folder, "train/loss")[0], "dropout 0.9"


def test_a_model_that_keeps_parts_in_eval_mode_by_its_own_train_is_asked(tmp_path: Path) -> None:
    """Law: as in a loop that calls `model.train()`."""
    weights = latest_weights(run(tmp_path, f"{CHANGING}:KeepsItsNormsInEval"))
    assert weights["norm.num_batches_tracked"] == 0


@pytest.mark.parametrize("average", ["--train.ema_decay=0.9", "--train.swa_from_epoch=1"])
def test_a_buffer_that_changes_its_shape_is_followed(average: str, tmp_path: Path) -> None:
    """Law: by averages, checkpoints, restarts and evaluation, under fast reduction."""
    from launch.evaluate import main as evaluate

    whole = run(tmp_path / "whole", "Growing", average)
    run(tmp_path / "cut", "Growing", average, "--train.max_steps=4")
    cut = run(tmp_path / "cut", "Growing", average)
    assert_same_bits(whole, cut)
    weights, trainer = load_checkpoint(cut / "checkpoints" / "latest")
    assert weights["cache"].shape == trainer["ema"]["cache"].shape == (10,)
    assert evaluate([str(cut), "--mistakes=0", "--trust_code"]) == 0


def test_a_model_that_came_in_eval_mode_is_trained(tmp_path: Path) -> None:
    from configs.schema_model import ModelConfig
    from trainer.networks.models import build_model

    config = ModelConfig(name=f"{ODD}:Pretrained")
    model = build_model(config, input_shape=(6,), num_classes=4, seed=0)
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize("model", ["resting", "hooked", "accumulating", "patched"])
def test_plain_layers_that_are_not_so_plain_go_through_autograd(model: str) -> None:
    from tests.support import odd_networks
    from trainer.backward.explicit.plain_layers import describe

    assert describe(odd_networks.stacked()) is not None
    assert describe(getattr(odd_networks, model)()) is None


# -- options and names ----------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["LossOfMine", "AccuracyOfMine", "CountOfMine"])
def test_a_metric_of_a_name_that_is_taken_is_refused(metric: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"given 'a value called .*another name than"):
        run(tmp_path, "Base", f'--task.metrics=["{ODD}:{metric}"]')


def test_label_smoothing_beside_a_loss_of_ones_own_is_refused(tmp_path: Path) -> None:
    loss = "--task.loss=torch.nn.functional:cross_entropy"
    with pytest.raises(InputError, match=r"train\.label_smoothing: given 0\.3, expected 0 with"):
        run(tmp_path, "Base", loss, "--train.label_smoothing=0.3")


# -- several ranks --------------------------------------------------------------------------------


def test_a_buffer_that_changes_its_shape_is_refused_by_exact_reduction(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"buffer cache of shape \(1,\) became \(2,\)"):
        run(tmp_path, "Growing", "--parallel.reduction=exact", "--parallel.shards=4")


@pytest.mark.process
@pytest.mark.parametrize("model", ["Rebound", "InPlace"])
def test_exact_reduction_follows_buffers_that_forward_puts_anew(model: str, tmp_path: Path) -> None:
    """Law: the bits of one rank on two."""
    exact = ("--parallel.reduction=exact", "--parallel.shards=2", "--data.kwargs={num_train: 128}")
    one = run(tmp_path / "one", model, *exact)
    assert train(*arguments(tmp_path / "two", model, *exact), ranks=2).status == 0
    ours, theirs = latest_weights(one), latest_weights(tmp_path / "two" / "run")
    assert ours["mean"].abs().sum() > 0
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.process
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_nothing_that_is_not_finite_is_saved_on_two_ranks(strategy: str, tmp_path: Path) -> None:
    options = ("--model.kwargs={at: 9}", f"--parallel.strategy={strategy}")
    command = arguments(tmp_path, "BadGradient", *options)
    finished = launch("launch/train.py", *command, ranks=2)
    assert finished.status == 1
    assert finished.output.count("after step 9 the weight") == 1
    assert status(tmp_path) == "failed"
