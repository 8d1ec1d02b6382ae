"""With one rank every collective is the identity, and a refusal is the same refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from configs.errors import InputError
from trainer.ranks.collectives import (
    barrier,
    broadcast_,
    broadcast_object,
    gather_objects,
    max_,
    raise_on_all_ranks,
    sum_,
)
from trainer.ranks.runtime import Runtime

ALONE = Runtime(launcher="python")


@pytest.mark.parametrize("collective", [sum_, max_])
def test_a_reduction_over_one_rank_is_the_tensor_itself(
    collective: Callable[[Runtime, Tensor], Tensor],
) -> None:
    tensor = torch.tensor([1.5, -2.0, float("inf")])
    assert collective(ALONE, tensor) is tensor
    assert tensor.tolist() == [1.5, -2.0, float("inf")]


def test_a_broadcast_from_the_only_rank_changes_nothing() -> None:
    tensors = [torch.arange(3), torch.ones(2)]
    broadcast_(ALONE, tensors)
    assert [tensor.tolist() for tensor in tensors] == [[0, 1, 2], [1.0, 1.0]]


def test_objects_pass_through_unchanged_and_uncopied() -> None:
    value = {"a": object()}
    assert broadcast_object(ALONE, value) is value
    (gathered,) = gather_objects(ALONE, value)
    assert gathered is value


def test_a_lone_rank_waits_for_nobody() -> None:
    barrier(ALONE)
    with pytest.raises(ValueError, match="process group"):  # there is nobody to wait for here
        barrier(replace(ALONE, world_size=2))


def test_a_barrier_waits_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL's all-reduce lets the GPU wait, and the host go on: it has to ask for the sum."""
    asked: list[Tensor] = []
    monkeypatch.setattr(Tensor, "item", lambda tensor: asked.append(tensor))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    barrier(replace(ALONE, world_size=2))
    dist.destroy_process_group()
    assert len(asked) == 1


def test_work_done_together_returns_its_result() -> None:
    assert raise_on_all_ranks(ALONE, lambda: [1, 2]) == [1, 2]


def test_work_refused_together_keeps_its_message() -> None:
    def refuse() -> None:
        raise InputError("data.root", given="x", expected="a folder", remedy="Make one.")

    with pytest.raises(InputError) as caught:
        raise_on_all_ranks(ALONE, refuse)
    assert str(caught.value) == str(
        InputError("data.root", given="x", expected="a folder", remedy="Make one.")
    )


def test_an_error_that_is_no_refusal_keeps_its_type() -> None:
    def fail() -> None:
        raise ZeroDivisionError("a bug, not an input")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        raise_on_all_ranks(ALONE, fail)
