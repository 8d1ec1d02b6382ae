"""One kernel over flat buffers takes the steps that torch's optimizers take."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.support.optimisation import FUSED_OPTIMIZERS
from trainer.checkpoints.state import host_copy
from trainer.networks.mlp import MLP
from trainer.optim.flat import FlatKernel, FlatParameters
from trainer.optim.fused import ALIGNMENT


def network() -> MLP:
    torch.manual_seed(0)
    return MLP((1, 3, 3), 5, hidden=(7, 6), dropout=0.1)


def parameters(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters())


class Pair:
    """The same network and optimizer twice: as torch has them, and flat."""

    def __init__(self, name: str) -> None:
        self.plain = network()
        self.moved = copy.deepcopy(self.plain)
        self.plain_optimizer = FUSED_OPTIMIZERS[name](self.plain.parameters())
        self.flat = FlatParameters(parameters(self.moved))
        self.optimizer = FUSED_OPTIMIZERS[name](self.moved.parameters())
        self.kernel = FlatKernel(self.optimizer, self.flat)

    def drive(self, count: int, first: int = 0) -> None:
        for index in range(first, first + count):
            generator = torch.Generator().manual_seed(index)
            for mine, theirs in zip(parameters(self.moved), parameters(self.plain), strict=True):
                gradient = torch.randn(theirs.shape, generator=generator)
                theirs.grad = gradient
                assert mine.grad is not None
                mine.grad.copy_(gradient)
            for optimizer, stepped in (
                (self.optimizer, self.kernel),
                (self.plain_optimizer, self.plain_optimizer),
            ):
                optimizer.param_groups[0]["lr"] = 0.1 / (index + 1)
                stepped.step()

    def check(self) -> None:
        for mine, theirs in zip(parameters(self.moved), parameters(self.plain), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
        mine, theirs = self.optimizer.state_dict(), self.plain_optimizer.state_dict()
        assert mine["param_groups"] == theirs["param_groups"]
        assert mine["state"].keys() == theirs["state"].keys()
        for index, entry in theirs["state"].items():
            assert {k for k, v in entry.items() if v is not None} == mine["state"][index].keys()
            for name, value in mine["state"][index].items():
                torch.testing.assert_close(value, entry[name], rtol=1e-6, atol=1e-7)


def test_a_module_does_not_notice_that_its_parameters_moved() -> None:
    """Law: values, shapes, names, and what becomes of a forward pass stay what they were."""
    plain = network().eval()
    moved = copy.deepcopy(plain)
    FlatParameters(parameters(moved))
    assert {n: tuple(p.shape) for n, p in moved.named_parameters()} == {
        n: tuple(p.shape) for n, p in plain.named_parameters()
    }
    for mine, theirs in zip(parameters(moved), parameters(plain), strict=True):
        assert torch.equal(mine, theirs)
    inputs = torch.randn(4, 1, 3, 3)
    torch.testing.assert_close(moved(inputs), plain(inputs))
    moved.load_state_dict(network().state_dict())
    assert torch.equal(parameters(moved)[0], parameters(network())[0])


def test_every_slot_is_aligned_and_no_two_overlap() -> None:
    module = network()
    flat = FlatParameters(parameters(module))
    for buffer in (flat.values, flat.gradients):
        buffer.zero_()
        for index, slot in enumerate(flat.views(buffer)):
            assert slot.storage_offset() % ALIGNMENT == 0
            assert not slot.count_nonzero(), f"slot {index} overlaps an earlier one"
            slot.fill_(index + 1)
        assert int(buffer.count_nonzero()) == sum(p.numel() for p in parameters(module))
    for parameter, value in zip(parameters(module), flat.views(flat.values), strict=True):
        assert parameter.data_ptr() == value.data_ptr()


def test_matrices_lie_transposed() -> None:
    module = network()
    FlatParameters(parameters(module))
    weight = parameters(module)[0]
    assert weight.t().is_contiguous()
    assert weight.grad is not None
    assert weight.grad.t().is_contiguous()


@pytest.mark.parametrize("name", FUSED_OPTIMIZERS)
def test_steps_and_state_are_those_of_the_optimizer(name: str) -> None:
    pair = Pair(name)
    pair.drive(4)
    pair.check()


@pytest.mark.parametrize("name", FUSED_OPTIMIZERS)
def test_a_state_dict_goes_from_flat_to_plain_and_back(name: str) -> None:
    """Law: a checkpoint does not tell who stepped."""
    pair = Pair(name)
    pair.drive(2)
    mine, theirs = (host_copy(o.state_dict()) for o in (pair.optimizer, pair.plain_optimizer))
    pair.plain_optimizer.load_state_dict(mine)
    pair.optimizer.load_state_dict(theirs)
    pair.drive(3, first=2)
    pair.check()


@pytest.mark.parametrize("name", FUSED_OPTIMIZERS)
def test_a_restored_optimizer_takes_the_same_steps_to_the_last_bit(name: str) -> None:
    whole, parts = Pair(name), Pair(name)
    whole.drive(5)
    parts.drive(2)
    saved = copy.deepcopy((parts.moved.state_dict(), parts.optimizer.state_dict()))
    fresh = Pair(name)
    fresh.moved.load_state_dict(saved[0])
    fresh.optimizer.load_state_dict(saved[1])
    fresh.drive(3, first=2)
    for mine, theirs in zip(parameters(fresh.moved), parameters(whole.moved), strict=True):
        assert torch.equal(mine, theirs)


def test_weight_decay_leaves_the_gaps_between_slots_alone() -> None:
    pair = Pair("adam")
    pair.drive(3)
    used: Tensor = torch.zeros_like(pair.flat.values)
    for slot in pair.flat.views(used):
        slot.fill_(1)
    assert not pair.flat.values[used == 0].count_nonzero()
