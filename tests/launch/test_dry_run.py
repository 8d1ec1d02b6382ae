"""`--dry_run.world_size`: what so many ranks would do, or the words in which they would refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.errors import InputError
from configs.load import load_config
from data.loading.order import Plan
from launch.forecast.dry_run import Report, check_evaluation, check_partition, examine
from launch.forecast.dry_run_report import facts_of, show, totals
from launch.train import main
from tests.support.processes import launch, train

Arguments = Callable[..., list[str]]


def dry(*arguments: str) -> Report:
    return examine(load_config(arguments, prog="train", description=""))


def refused(*arguments: str) -> str:
    with pytest.raises(InputError) as caught:
        dry(*arguments)
    return str(caught.value)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.process
def test_ranks_are_looked_at_without_being_started(small: Arguments, tmp_path: Path) -> None:
    """The whole command: status 0, a report, and nothing written."""
    arguments = small("run", "--train.global_batch_size=480", "--parallel.reduction=exact")
    finished = launch("launch/train.py", *arguments, "--dry_run.world_size=8")
    assert finished.status == 0, finished.output
    assert "60 samples on 8 ranks" in finished.stdout
    assert "nothing was started and nothing written" in finished.stdout
    assert files(tmp_path) == []


def test_the_numbers_of_every_rank_are_those_of_its_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: shares, micro-batches and steps are Plan's, for all 1,024 ranks, short batch too."""
    report = dry(
        "--config=mnist",
        f"--output_dir={tmp_path}",
        "--name=never",
        "--dry_run.world_size=1024",
        "--train.global_batch_size=4100",
        "--train.micro_batch_size=2",
    )
    assert report.total_steps == 10 * report.plan.epoch_schedule.steps(0) == 10 * 15
    assert [split.size for split in report.splits] == [4100, 60_000 - 14 * 4100]
    for split in report.splits:
        assert len(split.samples) == 1024
        assert sum(split.samples) == split.size
        for rank in (0, 1, 511, 1023):
            micros = replace(report.plan, rank=rank).global_batch(split.global_batch).micro_batches
            assert split.samples[rank] == sum(micro.size for micro in micros)
            assert split.micro_batches[rank] == len(micros)
    assert report.proved_global_batches == (0, 1, 14, 15)
    show(report)
    printed = capsys.readouterr().out
    assert "4 samples on 1,020 ranks, 5 samples on 4 ranks" in " ".join(
        value for _, value in facts_of(report)
    )
    assert "1014 of 1024 ranks have nothing to evaluate" in printed


@pytest.mark.process
def test_a_refusal_has_the_words_of_the_real_world(small: Arguments, tmp_path: Path) -> None:
    """Law: three ranks under exact reduction are refused alike, started or not."""
    exact = small("run", "--parallel.reduction=exact")
    started = launch("launch/train.py", *exact, ranks=3)
    message = refused(*exact, "--dry_run.world_size=3")
    assert "given 3, expected a power of two" in message
    assert f"error: {message}" in started.stderr
    assert files(tmp_path) == []


def test_every_rank_is_asked_for_its_smallest_micro_batch(small: Arguments) -> None:
    """The rank that batch normalisation refuses is named, also when it is not rank 0."""
    normed = [*small("run", "--evaluate.batch_size=50"), "--model.kwargs.batch_norm=true"]
    # The last batch of 5 is cut into 2 and 3, and with micro-batches of 2 the 3 into 2 and 1.
    plan = Plan(num_samples=509, global_batch_size=24, micro_batch_size=2, world_size=2)
    assert [replace(plan, rank=rank).micro_batch_sizes[0] for rank in (0, 1)] == [2, 1]
    assert dry(*normed, "--dry_run.world_size=2").notes == ()
    message = refused(*normed, "--train.micro_batch_size=2", "--dry_run.world_size=2")
    assert "given 'a micro-batch of 1 samples on rank 1', expected 2 or more" in message


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--dry_run.world_size=25"], "at least one sample for each of the 25 ranks"),
        (["--dry_run.world_size=16", "--parallel.reduction=exact"], "up to parallel.shards=8"),
        (["--dry_run.world_size=2", "--schedule.warmup_steps=99"], "fewer than the 44 steps"),
        (["--dry_run.world_size=2", "--data.root=/no/such"], "a folder that exists"),
        (["--dry_run.world_size=2", "--model.name=mpl"], "Did you mean 'mlp'?"),
        (["--dry_run.world_size=2", "--checkpoint.resume=/no/such"], "auto, never, or the path"),
        (["--dry_run.world_size=0"], "dry_run.world_size: given 0, expected 1 or more"),
    ],
)
def test_what_a_run_would_refuse_is_refused(
    small: Arguments, extra: list[str], message: str
) -> None:
    assert message in refused(*small("run"), *extra)


@pytest.mark.process
def test_it_knows_what_lies_in_the_run_directory(small: Arguments, tmp_path: Path) -> None:
    """A run there would be continued, refused as another one, or moved aside; none is touched."""
    train(*small("run", "--train.max_steps=30", "--checkpoint.every_steps=30"))
    before = files(tmp_path)
    two = "--dry_run.world_size=2"
    assert dry(*small("run"), two).directory.endswith("step_00000030 (step 30)")
    assert (
        "move the run that is there aside"
        in dry(*small("run"), two, "--checkpoint.resume=never").directory
    )
    assert "would start there" in dry(*small("other"), two).directory
    other = '--model.kwargs={"hidden": [8]}'
    message = refused(*small("run"), two, other, f"--checkpoint.resume={tmp_path / 'run'}")
    assert "the checkpoint does not fit this run" in message
    assert files(tmp_path) == before


def test_data_that_is_not_here_is_not_fetched(tmp_path: Path) -> None:
    """Facts of the catalogue stand in for a download; without one allowed it is refused."""
    arguments = [f"--data.root={tmp_path}", f"--output_dir={tmp_path}", "--dry_run.world_size=4"]
    report = dry("--config=fashion_mnist", *arguments)
    assert "would be downloaded" in report.data
    assert report.held_out == {"test": 10_000}
    data = next(need for need in report.memory if need.purpose == "data set")
    assert data.num_bytes == 70_000 * (28 * 28 + 8)
    assert "data.download is false" in refused(
        "--config=fashion_mnist", *arguments, "--data.download=false"
    )
    assert files(tmp_path) == []


@pytest.mark.parametrize("backward", ["auto", "autograd"])
def test_memory_is_what_a_rank_holds(small: Arguments, backward: str) -> None:
    """Adam keeps two numbers a weight; activations grow with the samples of a micro-batch."""

    def needs(*more: str) -> dict[str, int]:
        report = dry(*small("run"), f"--compile.backward={backward}", *more)
        assert totals(report)["host"] == sum(need.num_bytes or 0 for need in report.memory)
        return {need.purpose: need.num_bytes or 0 for need in report.memory}

    weights = 4 * (1536 + 400 + 85)
    one = needs("--dry_run.world_size=1", "--train.ema_decay=0.9")
    assert one["weights and buffers"] == one["gradients"] == one["averaged weights"] == weights
    assert 2 * weights <= one["optimizer state"] <= 2 * weights + 6 * 4
    assert one["data set"] == 610 * (63 + 8)
    assert one["micro-batch"] == 24 * (63 + 8)
    two = needs("--dry_run.world_size=2")
    assert "averaged weights" not in two
    # Inputs, activations and masks of 12 samples instead of 24; constants are a few bytes.
    assert two["activations"] == pytest.approx(one["activations"] / 2, rel=0.1)
    assert two["activations"] > 12 * 4 * (63 + 24 + 16)


@pytest.mark.parametrize("ranks", [8, 64])
def test_the_language_model_for_gpus_would_run_on_many_ranks(ranks: int, tmp_path: Path) -> None:
    """configs/gpt_small.yaml as it stands, but for the size of its network and of its windows."""
    for name, count in (("train", 16 * 600), ("val", 16 * 100)):
        (np.arange(count) % 50_257).astype("<u2").tofile(tmp_path / f"{name}.bin")
    (tmp_path / "tokens.json").write_text('{"dtype": "uint16", "vocabulary": 50257}')
    report = dry(
        "--config=gpt_small",
        f"--data.root={tmp_path}",
        "--data.kwargs.context=16",
        '--model.kwargs={"depth": 2, "width": 16, "heads": 2}',
        "--train.max_steps=1000",
        "--train.epochs=999",
        f"--output_dir={tmp_path}",
        f"--dry_run.world_size={ranks}",
    )
    assert report.execution.ways["engine"] == "FSDP"
    assert report.splits[0].samples == (512 // ranks,) * ranks
    assert report.splits[0].micro_batches == (512 // ranks // 8,) * ranks
    assert [need.purpose for need in report.memory if need.num_bytes is None] == ["data set"]


def test_shares_that_overlap_or_leave_a_gap_are_found() -> None:
    """The proof can fail: two ranks with the same slice, or one rank missing, do not pass."""
    plans = [Plan(num_samples=50, global_batch_size=16, world_size=4, rank=r) for r in range(4)]
    for index in (0, 1, 3, 4):
        check_partition(plans, index)
    with pytest.raises(AssertionError, match="taken twice"):
        check_partition([*plans[:3], plans[0]], 0)
    with pytest.raises(AssertionError, match="12 samples are taken of 16"):
        check_partition(plans[:3], 0)
    other = [replace(plan, seed=1) for plan in plans]
    with pytest.raises(AssertionError):
        check_partition([*plans[:3], other[3]], 0)
    check_evaluation(10_007, 1000, 3)


def test_a_dry_run_is_one_process(small: Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a launcher every rank would report on all of them."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="expected one process, which speaks for all ranks"):
        main([*small("run"), "--dry_run.world_size=4"])


def test_the_shell_of_an_allocation_is_one_process(
    small: Arguments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: tasks that are allocated, and that no srun has started, are not ranks."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert main([*small("run"), "--dry_run.world_size=4"]) == 0
    assert "4 ranks" in capsys.readouterr().out
