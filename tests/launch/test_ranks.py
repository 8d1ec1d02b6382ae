"""The run does not depend on how many ranks execute it: real torchrun and gloo processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.data_sets import make_idx
from tests.support.processes import launch, marked, train
from tests.support.runs import latest_weights, series

pytestmark = pytest.mark.process

Arguments = Callable[..., list[str]]


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What 1, 2 and 3 ranks say of the same run: 131 training and 10,007 test samples."""
    folder = tmp_path_factory.mktemp("probe")
    make_idx(folder / "files", num_train=131, num_test=10_007)
    results = {}
    for ranks in (1, 2, 3):
        finished = launch(
            "tests/programs/probe.py",
            "--config=idx",
            f"--data.root={folder / 'files'}",
            f"--output_dir={folder}",
            f"--name=ranks{ranks}",
            "--model.kwargs.dropout=0",
            "--train.global_batch_size=24",
            "--train.micro_batch_size=4",
            "--evaluate.batch_size=500",
            "--optimizer.name=sgd",
            "--compile.backward=autograd",  # DDP is watched
            "--optimizer.lr=1e-30",  # the two global batches are compared at the same weights
            ranks=ranks,
            env={"PYTHONPATH": str(Path.cwd())},
        )
        results[ranks] = marked(finished, "PROBE ")
        assert len(results[ranks]) == ranks
    return results


def test_evaluation_counts_are_equal_on_1_2_and_3_ranks(
    probes: dict[int, list[dict[str, Any]]],
) -> None:
    """10,007 samples: the same integers everywhere, and the loss to the last bit."""
    found = {(p["correct"], p["count"], p["loss"]) for group in probes.values() for p in group}
    assert len(found) == 1
    assert next(iter(found))[1] == 10_007


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("global_batch", ["full", "short"])
def test_gradient_is_that_of_one_concatenated_batch(
    probes: dict[int, list[dict[str, Any]]], ranks: int, global_batch: str
) -> None:
    """Accumulated in micro-batches of 4, in a global batch of 24 and in the last one of 11."""
    for probe in probes[ranks]:
        assert probe["gradients"][global_batch]["size"] == {"full": 24, "short": 11}[global_batch]
        assert probe["gradients"][global_batch]["error"] < 1e-5
    shares = [sum(probe["gradients"][global_batch]["mine"]) for probe in probes[ranks]]
    assert sum(shares) == probes[ranks][0]["gradients"][global_batch]["size"]


@pytest.mark.parametrize("ranks", [2, 3])
def test_no_sync_covers_forward_and_backward_of_all_but_the_last_micro_batch(
    probes: dict[int, list[dict[str, Any]]], ranks: int
) -> None:
    for probe in probes[ranks]:
        for global_batch in probe["gradients"].values():
            micros = len(global_batch["mine"])
            assert global_batch["syncs"] == [False, False] * (micros - 1) + [True, True]


def test_dropout_streams_differ_between_ranks(probes: dict[int, list[dict[str, Any]]]) -> None:
    draws = [tuple(probe["dropout"]) for probe in probes[3]]
    assert len(set(draws)) == 3


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same 24 steps (the last global batch of the first epoch is short) on 1, 2, 3 and 4
    ranks."""
    folder = tmp_path_factory.mktemp("matrix")
    make_idx(folder / "files")
    for ranks in (1, 2, 3, 4):
        train(
            "--config=idx",
            f"--data.root={folder / 'files'}",
            f"--output_dir={folder}",
            f"--name=ranks{ranks}",
            "--model.kwargs.dropout=0",
            "--train.global_batch_size=24",
            "--train.max_steps=24",
            "--train.clip_norm=1",
            "--train.ema_decay=0.9",
            "--schedule.name=cosine",
            "--schedule.warmup_steps=3",
            "--logging.every_steps=1",
            f"--compile.backward={'autograd' if ranks == 3 else 'explicit'}",
            ranks=ranks,
        )
    return {ranks: folder / f"ranks{ranks}" for ranks in (1, 2, 3, 4)}


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_losses_do_not_depend_on_the_number_of_ranks(matrix: dict[int, Path], ranks: int) -> None:
    for key in ("train/loss", "train/grad_norm"):
        one, many = series(matrix[1], key), series(matrix[ranks], key)
        assert len(one) == 24
        assert many == pytest.approx(one, abs=1e-5)
    assert series(matrix[ranks], "train/lr") == series(matrix[1], "train/lr")
    assert series(matrix[ranks], "train/accuracy") == series(matrix[1], "train/accuracy")
    assert series(matrix[ranks], "eval/correct") == series(matrix[1], "eval/correct")


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_weights_do_not_depend_on_the_number_of_ranks(matrix: dict[int, Path], ranks: int) -> None:
    one, many = latest_weights(matrix[1]), latest_weights(matrix[ranks])
    assert one.keys() == many.keys()
    for name, weight in one.items():
        torch.testing.assert_close(many[name], weight, rtol=0, atol=2e-5)


def test_exact_reduction_gives_the_same_bits_on_1_2_and_4_ranks(
    small: Arguments, tmp_path: Path
) -> None:
    """Dropout, batch norm, accumulation and the short last batch included."""
    extra = [
        "--parallel.reduction=exact",
        "--parallel.shards=4",
        "--train.global_batch_size=32",
        "--train.micro_batch_size=4",
        "--model.kwargs.batch_norm=true",
        "--train.max_steps=30",
    ]
    files = []
    for ranks in (1, 2, 4):
        train(*small(f"exact{ranks}", *extra), ranks=ranks)
        run = tmp_path / f"exact{ranks}"
        files.append((run / "checkpoints/latest/model.safetensors").read_bytes())
    assert files[0] == files[1] == files[2]


def test_fp16_skips_alike_on_all_ranks(small: Arguments, tmp_path: Path) -> None:
    """Steps that overflow move nothing: the run still takes its 12 steps, at the first rate."""
    extra = ["--precision.dtype=fp16", "--precision.init_scale=1e20", "--train.max_steps=12"]
    train(*small("fp16", *extra, "--train.epochs=20"), ranks=2)
    skipped = series(tmp_path / "fp16", "train/skipped_steps")
    steps = [int(step) for step in series(tmp_path / "fp16", "step")]
    assert skipped[-1] > 10
    assert sorted(set(steps)) == list(range(13))  # step 0: evaluated while all were skipped
    assert all(torch.isfinite(w).all() for w in latest_weights(tmp_path / "fp16").values())


@pytest.mark.slow
def test_compile_under_ddp_keeps_keys_and_compiles_only_in_the_first_epoch(
    small: Arguments, tmp_path: Path
) -> None:
    """The short last batch has its graph by then; evaluation runs the raw module."""
    finished = launch(
        "tests/programs/compiled.py",
        *small("compiled", "--compile.enabled=true", "--train.epochs=3"),
        ranks=2,
        env={"PYTHONPATH": str(Path.cwd())},
    )
    for after in marked(finished, "GRAPHS "):
        assert len(after) == 3
        assert after[0] > 0
        assert after[2] == after[0]
    names = latest_weights(tmp_path / "compiled").keys()
    assert names == {f"layers.{i}.{p}" for i in (1, 4, 7) for p in ("weight", "bias")}


def test_all_ranks_have_the_data_where_the_fullest_gpu_allows(tmp_path: Path) -> None:
    """Law: how steps are taken follows from it, and ranks take them together."""
    make_idx(tmp_path / "files")
    finished = launch(
        "tests/programs/placed.py",
        "--config=idx",
        f"--data.root={tmp_path / 'files'}",
        f"--output_dir={tmp_path}",
        ranks=2,
        env={"PYTHONPATH": str(Path.cwd())},
    )
    assert marked(finished, "PLACED ") == [["HostLoader", "HostLoader"]]
