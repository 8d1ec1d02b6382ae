"""An order of the user's own is a pure function of seed and epoch, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from configs.errors import InputError
from data.loading.order import Plan
from data.loading.user_order import UserOrder
from tests.support.odd_runs import run
from tests.support.runs import assert_same_bits

HERE = "tests.data.loading.test_user_order"
SAMPLES = [(torch.zeros(1), 0)] * 9


def drawn(seed: int, epoch: int) -> Tensor:
    """With replacement, as a weighted sampler draws."""
    generator = torch.Generator().manual_seed(1000 * seed + epoch)
    return torch.randint(9, (7,), generator=generator)


def by_size(seed: int, epoch: int, data: list[object]) -> list[int]:
    return [(index + epoch) % len(data) for index in range(len(data))]


def moody(seed: int, epoch: int) -> Tensor:
    return torch.randperm(9)


def growing(seed: int, epoch: int) -> list[int]:
    return [0] * (epoch + 1)


def outside(seed: int, epoch: int) -> list[int]:
    return [0, 9]


def floats(seed: int, epoch: int) -> list[float]:
    return [0.5]


def batches(seed: int, epoch: int) -> list[list[int]]:
    return [[0], [1]]


def backwards(epoch: int) -> list[int]:
    return list(reversed(range(130)))


def test_ranks_share_out_the_users_order() -> None:
    """Law: the slices of all ranks are the order, whatever is asked first."""
    order = UserOrder(f"{HERE}:drawn", SAMPLES, 3)
    plans = [
        Plan(num_samples=7, global_batch_size=4, rank=rank, world_size=2, user_order=order)
        for rank in (0, 1)
    ]
    for number in (3, 0, 2):
        found = plans[0].global_batch(number)
        parts = [i.tolist() for plan in plans for i in plan.indices(plan.global_batch(number))]
        whole = drawn(3, found.epoch)[found.start : found.start + found.size]
        assert [index for part in parts for index in part] == whole.tolist()
    assert UserOrder(f"{HERE}:by_size", SAMPLES, 0)(1).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("moody", "another order when asked again"),
        ("growing", "2 samples in epoch 1, 1 in the first"),
        ("outside", "indices from 0 to 9 of 9 samples"),
        ("floats", "torch.float32"),
        ("batches", r"shape \(2, 1\)"),
        ("SAMPLES", "list"),
    ],
)
def test_what_is_no_order_is_refused(name: str, words: str) -> None:
    with pytest.raises(InputError, match=rf"data\.order.*{words}"):
        UserOrder(f"{HERE}:{name}", SAMPLES, 0)(1)


def test_a_run_in_an_order_of_its_own_goes_on_where_it_was(tmp_path: Path) -> None:
    order = f"--data.order={HERE}:backwards"
    whole = run(tmp_path / "whole", "Base", order)
    run(tmp_path / "parts", "Base", order, "--train.max_steps=5")
    assert_same_bits(run(tmp_path / "parts", "Base", order), whole)
    other = run(tmp_path / "other", "Base")
    with pytest.raises(AssertionError):
        assert_same_bits(other, whole)
