"""The exact tree: the sum of shards, by the same additions whoever computes them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.loading.order import Plan
from trainer.backward.autograd import AutogradPasses
from trainer.engines.reduction import PairwiseTree
from trainer.ranks.rng import seed_stream
from trainer.ranks.runtime import Runtime

pytestmark = pytest.mark.usefixtures("one_thread")

ALONE = Runtime(launcher="python")
SEED = 7
INPUTS = torch.randn(64, 3, 2, 2, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(64) % 5


def network(*, dropout: float = 0.0, batch_norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm2d(3) if batch_norm else nn.Identity(),
        nn.Flatten(),
        nn.Linear(12, 8),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(8, 5),
    )


class Counting(nn.Module):
    """Counts its forward passes in a buffer, as batch normalisation does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 5)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.layer(inputs.flatten(1))
        return logits


@dataclass
class Share:
    """What one rank, or all together, have after a global batch."""

    gradient: list[Tensor]
    buffers: dict[str, Tensor]


def loss_of(module: nn.Module, indices: Tensor) -> Tensor:
    return F.cross_entropy(module(INPUTS[indices]), TARGETS[indices], reduction="sum")


def run_rank(
    module: nn.Module,
    *,
    size: int,
    shards: int,
    rank: int = 0,
    world_size: int = 1,
    micro: int | None = None,
    index: int = 0,
) -> Share:
    """The subtree of one rank: the tree itself is told that nobody else is there."""
    module = copy.deepcopy(module)
    plan = Plan(
        num_samples=size,
        global_batch_size=size,
        micro_batch_size=micro,
        rank=rank,
        world_size=world_size,
        seed=SEED,
        shards=shards,
    )
    passes = AutogradPasses(module, module, torch.amp.GradScaler("cpu", enabled=False))
    tree = PairwiseTree(module, passes, ALONE, shards=shards // world_size, seed=SEED)
    global_batch = plan.global_batch(index)
    for part, indices in zip(global_batch.micro_batches, plan.indices(global_batch), strict=True):
        with tree.micro_batch(global_batch, part):
            (loss_of(module, indices) / global_batch.size).backward()
    tree.finish()
    gradient = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    return Share(gradient, {name: b.clone() for name, b in module.named_buffers()})


def tree_sum(parts: list[Tensor]) -> Tensor:
    """The reference: split in halves, add the halves."""
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    return tree_sum(parts[:half]) + tree_sum(parts[half:])


def run_all(module: nn.Module, *, world_size: int, size: int, shards: int, **keys: int) -> Share:
    """All ranks one after the other, combined in tree order."""
    shares = [
        run_rank(module, size=size, shards=shards, rank=r, world_size=world_size, **keys)
        for r in range(world_size)
    ]
    gradient = [tree_sum(list(parts)) for parts in zip(*(s.gradient for s in shares), strict=True)]
    buffers = {
        name: tree_sum([s.buffers[name] for s in shares]) / world_size
        if value.is_floating_point()
        else value
        for name, value in shares[0].buffers.items()
    }
    return Share(gradient, buffers)


def assert_same_bits(first: Share, second: Share) -> None:
    assert len(first.gradient) == len(second.gradient) > 0
    for mine, theirs in zip(first.gradient, second.gradient, strict=True):
        assert torch.equal(mine, theirs)
    assert first.buffers.keys() == second.buffers.keys()
    for name, value in first.buffers.items():
        assert torch.equal(value, second.buffers[name]), name


@pytest.mark.parametrize("micro", [None, 1, 3])
@pytest.mark.parametrize(("size", "shards"), [(64, 1), (64, 8), (64, 64), (37, 4), (5, 8)])
def test_the_sum_over_shards_is_the_gradient_of_the_whole_batch(
    size: int, shards: int, micro: int | None
) -> None:
    module = network()
    found = run_rank(module, size=size, shards=shards, micro=micro)
    order = Plan(num_samples=size, global_batch_size=size, seed=SEED).order(0)
    (loss_of(module, order) / size).backward()
    expected = [p.grad for p in module.parameters()]
    for mine, theirs in zip(found.gradient, expected, strict=True):
        assert theirs is not None
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [64, 45])
@pytest.mark.parametrize("shards", [1, 2, 4, 8, 16])
def test_shards_are_added_along_a_balanced_binary_tree(shards: int, size: int) -> None:
    """Each shard computed alone, under its own stream, and added by the reference."""
    plan = Plan(num_samples=size, global_batch_size=size, seed=SEED, shards=shards)
    global_batch = plan.global_batch(0)
    alone: list[list[Tensor]] = []
    for part, indices in zip(global_batch.micro_batches, plan.indices(global_batch), strict=True):
        module = network(dropout=0.5)
        seed_stream(SEED, "shard", global_batch.number, part.shard)
        (loss_of(module, indices) / global_batch.size).backward()
        alone.append([p.grad for p in module.parameters() if p.grad is not None])
    found = run_rank(network(dropout=0.5), size=size, shards=shards)
    for mine, parts in zip(found.gradient, zip(*alone, strict=True), strict=True):
        assert torch.equal(mine, tree_sum(list(parts)))


@pytest.mark.parametrize("micro", [None, 3])
@pytest.mark.parametrize("size", [64, 45, 9])
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_the_bits_do_not_depend_on_how_shards_are_spread_over_ranks(
    world_size: int, size: int, micro: int | None
) -> None:
    module = network(dropout=0.5, batch_norm=True)
    one = run_all(module, world_size=1, size=size, shards=8, micro=micro)
    several = run_all(module, world_size=world_size, size=size, shards=8, micro=micro)
    assert_same_bits(one, several)


def test_addition_in_another_order_would_not_give_the_same_bits() -> None:
    """Otherwise the tests above would prove nothing."""
    module = network(dropout=0.5)
    shards = [run_rank(module, size=64, shards=8, rank=r, world_size=8) for r in range(8)]
    parts = [share.gradient[0] for share in shards]
    in_a_row = parts[0]
    for part in parts[1:]:
        in_a_row = in_a_row + part
    assert not torch.equal(in_a_row, tree_sum(parts))


@pytest.mark.parametrize("size", [64, 45])
def test_batch_norm_statistics_become_the_mean_over_shards(size: int) -> None:
    module, shards = network(batch_norm=True), 4
    plan = Plan(num_samples=size, global_batch_size=size, seed=SEED, shards=shards)
    per_shard = []
    for indices in plan.indices(plan.global_batch(0)):
        fresh = copy.deepcopy(module).train()
        fresh(INPUTS[indices])
        per_shard.append(dict(fresh.named_buffers()))
    found = run_rank(module, size=size, shards=shards).buffers
    for name in ("0.running_mean", "0.running_var"):
        mean = torch.stack([buffers[name] for buffers in per_shard]).double().mean(0)
        torch.testing.assert_close(found[name].double(), mean, rtol=1e-6, atol=1e-7)
    assert int(found["0.num_batches_tracked"]) == 1


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_integer_buffers_do_not_depend_on_the_rank_that_computed_them(world_size: int) -> None:
    """Nine samples in four shards are 2, 2, 2 and 3: one shard needs a second micro-batch."""
    shares = [
        run_rank(Counting(), size=9, shards=4, rank=r, world_size=world_size, micro=2)
        for r in range(world_size)
    ]
    one = run_rank(Counting(), size=9, shards=4, micro=2)
    assert [int(s.buffers["calls"]) for s in shares] == [int(one.buffers["calls"])] * world_size


def test_every_global_batch_and_every_shard_draw_their_own_numbers() -> None:
    module = network(dropout=0.5)
    found = run_rank(module, size=64, shards=8)
    assert_same_bits(run_rank(module, size=64, shards=8), found)
    plan = Plan(num_samples=64, global_batch_size=64, seed=SEED)
    passes = AutogradPasses(module, module, torch.amp.GradScaler("cpu", enabled=False))
    tree = PairwiseTree(module, passes, ALONE, shards=1, seed=SEED)
    masks = []
    for index in (0, 1):
        global_batch = plan.global_batch(index)
        with tree.micro_batch(global_batch, global_batch.micro_batches[0]):
            masks.append(F.dropout(torch.ones(64)))
            module(INPUTS).sum().backward()
        tree.finish()
    assert not torch.equal(masks[0], masks[1])


def test_a_parameter_that_took_no_part_has_no_gradient() -> None:
    """Law: zeros would be a step of momentum and weight decay."""
    module = network()
    names = dict(module.named_parameters())
    module.register_parameter("idle", nn.Parameter(torch.ones(3)))
    assert len(run_rank(module, size=8, shards=2).gradient) == len(names)


def test_a_frozen_parameter_has_no_gradient() -> None:
    module = network()
    module[2].weight.requires_grad_(False)
    assert len(run_rank(module, size=8, shards=2).gradient) == 3
