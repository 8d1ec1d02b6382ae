"""Losses and batches that trainers get wrong in silence: right here, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.errors import InputError
from tests.support.odd_runs import ODD, arguments, run
from tests.support.processes import launch, train
from tests.support.runs import comparable, series


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("weighted_mean", r"one number, .* expected the mean over samples.*reduction='none'"),
        ("summed_up", r"one number, .* for 32 samples"),
        ("Learning", r"a module with parameters \(scale"),
    ],
)
def test_a_loss_that_is_no_mean_over_samples_is_refused(
    loss: str, words: str, tmp_path: Path
) -> None:
    """Law: before the first step, with what it gave for a batch and for its parts."""
    with pytest.raises(InputError, match=rf"task\.loss: given .*{words}"):
        run(tmp_path, "Base", f"--task.loss={ODD}:{loss}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("loss", ["weighted_float32", "WeightedModule", "weighted_module"])
def test_weights_of_classes_are_those_of_each_sample(loss: str, tmp_path: Path) -> None:
    """Law: the same for any micro-batch, and evaluated in the type of the weights."""
    whole = run(tmp_path / "whole", "Base", f"--task.loss={ODD}:{loss}")
    cut = ("--train.micro_batch_size=8", "--evaluate.batch_size=7")
    parts = run(tmp_path / "parts", "Base", f"--task.loss={ODD}:{loss}", *cut)
    for key in ("train/loss", "eval/loss"):
        assert series(parts, key) == pytest.approx(series(whole, key), rel=1e-5)


def test_a_mean_is_what_it_is_without_being_told(tmp_path: Path) -> None:
    own = run(tmp_path / "own", "Base", f"--task.loss={ODD}:plain_mean")
    built_in = run(tmp_path / "built_in", "Base")
    assert series(own, "train/loss") == pytest.approx(series(built_in, "train/loss"), rel=1e-6)
    assert series(own, "eval/loss") == pytest.approx(series(built_in, "eval/loss"), rel=1e-6)


def test_numbers_of_another_shape_are_not_reshaped(tmp_path: Path) -> None:
    """Law: outputs (B, 4) suit targets (B, 4), and neither (B, 2, 2) nor (B,)."""
    options = (f"--data.dataset={ODD}:toy_numbers", "--task.name=regression")
    run(tmp_path, "Base", *options, "--data.kwargs={shape: [4]}")
    for shape in ([2, 2], []):
        with pytest.raises(InputError, match=r"outputs of the model .*outputs \(1, 4\)"):
            run(tmp_path / "no", "Base", *options, f"--data.kwargs={{shape: {shape}}}")


def test_a_label_that_no_output_stands_for_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train sample 7: label: given -100, expected 0 to 3"):
        run(tmp_path, "Base", f"--data.dataset={ODD}:ignored")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("TupleInTraining", "outputs of the model: given 'tuple"),
        ("Complex", "weight phase of the model: given 'complex64'"),
    ],
)
def test_a_model_that_cannot_be_trained_says_why(model: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        run(tmp_path, model)


# -- ranks without samples ------------------------------------------------------------------------


def test_a_shard_without_samples_adds_nothing(tmp_path: Path) -> None:
    """Law: exact reduction over 4 shards of a last batch of 2, on one rank."""
    exact = ("--parallel.reduction=exact", "--parallel.shards=4", f"--task.loss={ODD}:plain_mean")
    cut = run(tmp_path / "cut", "FlatView", *exact)
    whole = run(tmp_path / "whole", "FlatView", f"--task.loss={ODD}:plain_mean")
    assert series(cut, "train/loss") == pytest.approx(series(whole, "train/loss"), rel=1e-4)


@pytest.mark.process
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "options",
    [
        ("FlatView", f"--task.loss={ODD}:plain_mean"),
        pytest.param(
            ("Base", f"--data.dataset={ODD}:toy_numbers", "--task.name=regression",
             "--data.kwargs={shape: [4]}"),
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_a_rank_without_samples_adds_nothing(
    options: tuple[str, ...], strategy: str, tmp_path: Path
) -> None:
    """Law: a last batch of 2 on three ranks is learned from as on one."""
    model, *more = options
    one = run(tmp_path / "one", model, *more)
    command = arguments(tmp_path / "three", model, *more, f"--parallel.strategy={strategy}")
    assert train(*command, ranks=3).status == 0
    three = comparable(tmp_path / "three" / "run")
    for mine, theirs in zip(comparable(one), three, strict=True):
        for key in mine:
            assert theirs[key] == pytest.approx(mine[key], rel=2e-3, abs=1e-5), key


@pytest.mark.process
def test_fewer_samples_than_ranks_are_refused(tmp_path: Path) -> None:
    command = arguments(tmp_path, "Base", "--data.kwargs={num_train: 2}")
    finished = launch("launch/train.py", *command, ranks=3)
    assert finished.status != 0
    assert "number of ranks: given 3, expected at most the 2 training samples" in finished.output
    assert 'Traceback (most recent call last):\n  File "/' not in finished.stdout
