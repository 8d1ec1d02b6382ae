"""Sharded weights and compressed gradients, on real gloo ranks: the same run as ever."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.data_sets import make_idx
from tests.support.processes import launch, marked
from tests.support.runs import assert_same_bits, latest_weights, records, series, train_here
from trainer.checkpoints.checkpoint import load_checkpoint

pytestmark = pytest.mark.process

OPTIONS = (
    "--model.kwargs.hidden=[24,16]",
    "--model.kwargs.dropout=0",
    "--train.global_batch_size=24",
    "--train.micro_batch_size=4",
    "--train.epochs=2",
    "--train.clip_norm=1",
    "--train.ema_decay=0.9",
    "--evaluate.batch_size=40",
    "--logging.every_steps=1",
    "--logging.progress=off",
    "--parallel.device=cpu",
    "--compile.backward=autograd",
)
"""269 samples: 12 steps an epoch, the last of them over 5; 101 test samples in 3 batches."""
FSDP = "--parallel.strategy=fsdp"
DROPOUT = "--model.kwargs.dropout=0.3"
SWA = ("--train.ema_decay=null", "--train.swa_from_epoch=1", DROPOUT)
PARTS = (FSDP, "--checkpoint.sharded=true")
MUON = ("--optimizer.name=muon", "--train.max_steps=6")
BF16 = "--precision.dtype=bf16"
OVERFLOW = ("--precision.dtype=fp16", "--precision.init_scale=1e8", "--train.max_steps=12")
CASTS = ("cast-bf16", "cast-flat", "cast-sharded")
FEEDBACK = ("--parallel.compression=powersgd", "--parallel.powersgd_start_step=5", DROPOUT)


def several(folder: Path, ranks: int, runs: Sequence[Sequence[str]]) -> list[Any]:
    """Train runs on the same ranks, each a name and its options; see programs/several.py."""
    data = f"--data.root={folder / 'files'}"
    arguments = [
        ["--config=idx", data, f"--output_dir={folder}", f"--name={name}", *OPTIONS, *more]
        for name, *more in runs
    ]
    finished = launch(
        "tests/programs/several.py",
        json.dumps(arguments),
        ranks=ranks,
        env={"PYTHONPATH": str(Path.cwd())},
    )
    (found,) = marked(finished, "DIFFERENCES ")
    return list(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    make_idx(folder / "files", num_train=269)
    return folder


@pytest.fixture(scope="module")
def two(folder: Path) -> Path:
    """Runs on two ranks; one of them came from a single rank, and goes back to one."""

    def alone(*more: str) -> None:
        train_here(folder, folder / "files", *OPTIONS, "--name=journey", *more)

    alone("--train.max_steps=7")
    found = several(
        folder,
        2,
        [
            ("journey", *PARTS, "--train.max_steps=14"),
            ("journey", "--train.max_steps=19"),
            ("ddp",),
            ("bf16", BF16),
            ("bf16-sharded", BF16, FSDP),
            ("overflow", *OVERFLOW),
            ("overflow-sharded", *OVERFLOW, FSDP),
            ("swa", *SWA, FSDP),
            ("swa-stopped", *SWA, *PARTS, "--train.max_steps=15"),
            ("swa-stopped", *SWA, FSDP),
            ("checkpointed", *SWA, FSDP, "--parallel.activation_checkpointing=true"),
            ("cast-bf16", "--parallel.compression=bf16"),
            ("cast-fp16", "--parallel.compression=fp16"),
            ("cast-flat", "--parallel.compression=bf16", "--compile.backward=explicit"),
            ("cast-sharded", "--parallel.compression=bf16", FSDP),
            ("feedback", *FEEDBACK),
            ("feedback-stopped", *FEEDBACK, "--train.max_steps=11"),
            ("feedback-stopped", *FEEDBACK),
            ("dropout", DROPOUT),
            ("muon", *MUON),
            ("muon-sharded", *MUON, *PARTS),
        ],
    )
    assert found == [[]] * len(found)
    alone()
    return folder


@pytest.fixture(scope="module")
def three(folder: Path) -> Path:
    """The last step of an epoch has one or two samples a rank; a rank has no test batch left."""
    several(
        folder,
        3,
        [
            ("ddp3", "--evaluate.batch_size=30"),
            ("fsdp3", FSDP, "--evaluate.batch_size=30"),
            ("compiled3", FSDP, "--compile.enabled=true", "--train.max_steps=2"),
        ],
    )
    return folder


def assert_close(first: Path, second: Path, *, atol: float) -> None:
    """Losses, gradient norms before clipping and weights of two runs."""
    for key in ("train/loss", "train/grad_norm"):
        ours, theirs = series(first, key), series(second, key)
        assert len(ours) == 24
        assert theirs == pytest.approx(ours, rel=atol, abs=atol)
    ours, theirs = latest_weights(first), latest_weights(second)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=0, atol=atol)


def test_a_journey_over_one_rank_fsdp_and_ddp_is_the_run_of_ddp(two: Path) -> None:
    """Law: who holds which weights changes nothing but rounding; in parts or not, a checkpoint is
    read by all.

    The fixture has seen that weights, optimizer and average right after loading are those of the
    file bit for bit.
    """
    assert_close(two / "ddp", two / "journey", atol=1e-5)


def test_muon_orthogonalises_whole_matrices(two: Path) -> None:
    """Law: of which ranks hold rows; its products are bfloat16, so their rounding shows."""
    ours, theirs = (series(two / name, "train/loss") for name in ("muon", "muon-sharded"))
    assert len(ours) == 6
    assert theirs == pytest.approx(ours, abs=2e-3)
    usual = series(two / "ddp", "train/loss")[:6]
    assert max(abs(a - b) for a, b in zip(ours, usual, strict=True)) > 1e-2


def test_a_run_in_parts_is_exported_to_one_file(two: Path) -> None:
    from launch.export import main

    run = two / "muon-sharded"
    assert not (run / "checkpoints/best/model.safetensors").exists()
    assert main([str(run), "--format=safetensors"]) == 0
    exported, saved = (
        load_file(run / "model.safetensors"),
        load_checkpoint(run / "checkpoints/best"),
    )
    assert exported.keys() == saved[0].keys()
    assert all(torch.equal(exported[name], saved[1]["ema"][name]) for name in exported)


@pytest.mark.slow
def test_copies_of_parts_move_to_fewer_ranks_and_back_to_whole_copies(two: Path) -> None:
    """HSDP on four ranks, FSDP on two, one rank, and two under DDP: the run of DDP, and every
    start has the bits that the one before has saved.

    The checkpoints in parts hold every row once, though two ranks have it.
    """
    hybrid = (*PARTS, "--parallel.shard_size=2", "--parallel.reshard_after_forward=false")
    assert several(two, 4, [("travel", *hybrid, "--train.max_steps=6")]) == [[]]
    path = (two / "travel/checkpoints/latest").resolve()
    parts = [file for file in path.iterdir() if file.name.startswith("part_")]
    assert len(parts) == 4
    whole = sum(t.numel() for t in load_checkpoint(path)[0].values())
    held = sum(file.stat().st_size for file in parts) / 4
    assert 4 * whole < held < 4.5 * whole + 4000  # weights, average, two moments
    assert several(two, 2, [("travel", *PARTS, "--train.max_steps=11")]) == [[]]
    train_here(two, two / "files", *OPTIONS, "--name=travel", "--train.max_steps=15")
    assert several(two, 2, [("travel",)]) == [[]]
    assert_close(two / "ddp", two / "travel", atol=1e-5)


@pytest.mark.slow
def test_sharded_ranks_with_unequal_shares_compute_what_ddp_does(three: Path) -> None:
    """Accumulated, clipped and averaged, with the short last batch, on three ranks."""
    assert_close(three / "ddp3", three / "fsdp3", atol=1e-5)


@pytest.mark.slow
def test_compiled_blocks_compute_the_same_losses(three: Path) -> None:
    losses = [series(three / name, "train/loss")[:2] for name in ("fsdp3", "compiled3")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    names = [set(latest_weights(three / name)) for name in ("fsdp3", "compiled3")]
    assert names[0] == names[1]


@pytest.mark.slow
def test_ranks_that_run_along_in_an_evaluation_count_nothing(three: Path) -> None:
    """101 samples in four batches on three ranks: two have one batch, and go through two."""
    ours, theirs = (
        [r for r in records(three / name) if "eval/loss" in r] for name in ("ddp3", "fsdp3")
    )
    assert len(ours) == len(theirs) == 2
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["eval/count"] == other["eval/count"] == 101
        assert mine["eval/correct"] == other["eval/correct"]
        assert mine["eval/loss"] == pytest.approx(other["eval/loss"], abs=1e-6)


def test_bf16_computes_what_autocast_does(two: Path) -> None:
    """Law: weights that travel in bfloat16 are those that autocast would have made of them."""
    assert_close(two / "bf16", two / "bf16-sharded", atol=1e-6)
    difference = [
        abs(a - b)
        for a, b in zip(
            series(two / "bf16", "train/loss"), series(two / "ddp", "train/loss"), strict=True
        )
    ]
    assert max(difference) > 1e-5, "bfloat16 can be told from float32"


def test_fp16_skips_steps_that_overflow(two: Path) -> None:
    """Law: a step whose gradients overflow moves nothing on any rank, sharded or not.

    DDP skips one more: its loss is multiplied by the two ranks that it averages over.
    """
    runs = [two / "overflow", two / "overflow-sharded"]
    skipped = [series(run, "train/skipped_steps")[-1] for run in runs]
    assert skipped[0] == skipped[1] + 1 > 3
    losses = [series(run, "train/loss") for run in runs]
    assert len(losses[0]) == 12
    assert losses[1][-1] < losses[1][0]


def test_a_sharded_run_that_was_stopped_has_the_bits_of_one_left_alone(two: Path) -> None:
    """In mid-epoch, with dropout and averaged weights."""
    assert_same_bits(two / "swa", two / "swa-stopped")
    assert series(two / "swa", "eval/loss")[-1] == series(two / "swa-stopped", "eval/loss")[-1]


def test_checkpointed_activations_change_no_bit(two: Path) -> None:
    """Law: what is computed again is computed as before, dropout included."""
    assert_same_bits(two / "swa", two / "checkpointed")
    assert series(two / "swa", "train/loss") == series(two / "checkpointed", "train/loss")


@pytest.mark.parametrize(("name", "atol"), [("cast-bf16", 1e-2), ("cast-fp16", 1e-3)])
def test_gradients_that_travel_in_fewer_bits_are_nearly_those_of_ddp(
    two: Path, name: str, atol: float
) -> None:
    assert_close(two / "ddp", two / name, atol=atol)
    assert series(two / "ddp", "train/loss") != series(two / name, "train/loss")


def test_all_ways_to_cast_gradients_agree(two: Path) -> None:
    """DDP's hook, the flat buffer and the reduce-scatter of FSDP round to the same type."""
    norms = {name: series(two / name, "train/grad_norm") for name in ("ddp", *CASTS)}
    rounded = abs(norms["cast-bf16"][0] - norms["ddp"][0])
    assert rounded > 1e-5
    assert abs(norms["cast-flat"][0] - norms["cast-bf16"][0]) < rounded / 10
    # FSDP sums micro-batches in that type, too.
    assert 0 < abs(norms["cast-sharded"][0] - norms["ddp"][0]) < 4 * rounded


def test_powersgd_begins_late_and_feeds_its_error_back_after_a_restart(two: Path) -> None:
    """Law: what it left out is state; a stopped run has the bits of one left alone."""
    assert_same_bits(two / "feedback", two / "feedback-stopped")
    plain, compressed = (series(two / name, "train/loss") for name in ("dropout", "feedback"))
    assert compressed[:6] == plain[:6]
    assert compressed[6:] != plain[6:]
    assert compressed[-1] < 0.95 * compressed[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((FSDP, "--optimizer.name=LBFGS"), "optimizer.name: given 'LBFGS'"),
        (("--parallel.sync_batch_norm=true",), "no kernels for a CPU"),
        ((FSDP, "--parallel.cpu_offload=true"), "fsdp on two GPUs or more"),
        ((FSDP, "--compile.backward=explicit"), "under parallel.strategy ddp"),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_is_written(
    folder: Path, options: tuple[str, ...], words: str
) -> None:
    """By a rank of a world of two, which is looked at without being started."""
    finished = launch(
        "launch/train.py",
        "--config=idx",
        f"--data.root={folder / 'files'}",
        f"--output_dir={folder}",
        "--name=refused",
        *OPTIONS,
        "--dry_run.world_size=2",
        *options,
    )
    assert finished.status == 2, finished.output
    assert words in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (folder / "refused").exists()
