"""Copies of modules, which averages and fit() work with: whole, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from configs.errors import InputError
from tests.support import odd_networks
from tests.support.odd_runs import run
from tests.support.own_objects import net, train
from trainer.networks.copying import copied

SCALE = nn.Linear(6, 6)


def closing_over(model: nn.Module) -> nn.Module:
    layer = model[0]  # type: ignore[index]
    model.register_forward_pre_hook(lambda module, args: (args[0] * layer.weight.mean(),))
    return model


def triple(weight: Tensor) -> None:
    assert weight.grad is not None
    weight.grad.mul_(3)


def with_a_global() -> nn.Module:
    model = nn.Sequential(SCALE, nn.Linear(6, 4))
    model.register_forward_pre_hook(lambda module, args: (args[0] * SCALE.weight.mean(),))
    return model


@pytest.mark.parametrize(
    "model", [odd_networks.patched(), closing_over(odd_networks.stacked()), with_a_global()]
)
def test_a_function_that_holds_on_to_the_original_is_refused(model: nn.Module) -> None:
    """Law: its copy would compute with the weights of the original, and nobody would be told."""
    with pytest.raises(InputError, match="holds on to the module it was made for"):
        copied(model)


def test_an_average_and_fit_refuse_it_and_a_run_without_trains_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="forward of 0: given 'a function that holds on"):
        run(tmp_path / "average", "patched", "--train.ema_decay=0.9")
    assert not list((tmp_path / "average").rglob("*.yaml"))
    given = net()
    plain = given.layers[0].forward
    given.layers[0].forward = lambda inputs: 2 * plain(inputs)  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"forward of layers\.0: given"):
        train(tmp_path, model=given)
    run(tmp_path / "plain", "patched")


def test_hooks_are_copied_with_what_they_hang_on() -> None:
    """Law: on weights, which `deepcopy` leaves behind, and on modules."""
    model = odd_networks.hooked()
    calls: list[Tensor] = []
    model[2].register_forward_hook(lambda module, args, out: calls.append(out))
    model[3].weight.register_post_accumulate_grad_hook(triple)
    copy, inputs = copied(model.eval()), torch.ones(2, 6)
    for module in (model, copy):
        module(inputs).sum().backward()
    assert len(calls) == 2
    for mine, theirs in zip(model.parameters(), copy.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert torch.equal(mine.grad, theirs.grad)
    assert copy[0].weight is not model[0].weight  # type: ignore[index]


def test_what_cannot_be_copied_is_refused_with_the_way_out(tmp_path: Path) -> None:
    old = nn.utils.weight_norm(nn.Linear(6, 4))
    with pytest.raises(InputError, match=r"cannot be copied .*parametrizations\.weight_norm"):
        copied(old)
