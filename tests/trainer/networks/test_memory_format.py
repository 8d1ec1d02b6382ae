"""Weights of convolutions with their channels last: the same run, in another order of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from configs.errors import InputError
from configs.load import load_config
from tests.support.runs import assert_same_bits, latest_weights, train_here
from trainer.networks.memory_format import (
    choose_channels_last,
    lay_out_state,
    put_channels_last,
    steps,
)
from trainer.networks.resnet import resnet18

CONVNET = ("--model.name=convnet", '--model.kwargs={"widths": [4, 8]}', "--train.ema_decay=0.9")
CHANNELS_LAST = "--compile.channels_last=true"


def test_a_stopped_run_ends_with_the_same_bits(
    tmp_path: Path, idx_folder: Path, one_thread: None
) -> None:
    """Law: what a checkpoint holds is laid out again, for fused kernels above all."""
    options = (*CONVNET, CHANNELS_LAST)
    whole = train_here(tmp_path / "whole", idx_folder, *options)
    train_here(tmp_path / "parts", idx_folder, *options, "--train.max_steps=13")
    parts = train_here(tmp_path / "parts", idx_folder, *options)
    assert_same_bits(whole, parts)
    plain = latest_weights(train_here(tmp_path / "plain", idx_folder, *CONVNET))
    found = latest_weights(whole)
    assert found.keys() == plain.keys()
    for name, value in found.items():
        assert value.is_contiguous()
        torch.testing.assert_close(value, plain[name], rtol=2e-2, atol=2e-2, msg=name)


def test_parameters_gradients_and_state_lie_alike(one_thread: None) -> None:
    """Law: of 1x1 convolutions as well, whose strides may differ where their order does not."""
    torch.manual_seed(0)
    model = resnet18((3, 16, 16), 5)
    parameters = list(model.parameters())
    put_channels_last(model)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    optimizer = torch.optim.Adam(parameters, fused=True)
    model(torch.randn(4, 3, 16, 16)).sum().backward()
    optimizer.step()
    assert model.layer2[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    for parameter in parameters:
        assert parameter.grad is not None
        assert steps(parameter.grad) == steps(parameter)
    saved = optimizer.state_dict()
    state: dict[int, Any] = {
        index: {name: value.clone().contiguous() for name, value in own.items()}
        for index, own in saved["state"].items()
    }
    expected = [value["exp_avg"].clone() for value in optimizer.state.values()]
    optimizer.load_state_dict(saved | {"state": state})
    lay_out_state(optimizer)
    for (parameter, own), before in zip(optimizer.state.items(), expected, strict=True):
        assert steps(own["exp_avg"]) == steps(own["exp_avg_sq"]) == steps(parameter)
        assert torch.equal(own["exp_avg"], before)


CHOICES = [
    ((), "cpu", False),
    ((CHANNELS_LAST,), "cpu", True),
    ((), "cuda", False),
    (("--precision.dtype=bf16",), "cuda", True),
    (("--precision.dtype=bf16", "--compile.channels_last=false"), "cuda", False),
    (("--precision.dtype=bf16", "--parallel.strategy=fsdp"), "cuda", False),
    (("--precision.dtype=bf16", "--parallel.reduction=exact"), "cuda", False),
]


@pytest.mark.parametrize(("options", "device", "expected"), CHOICES)
def test_where_it_is_chosen(options: tuple[str, ...], device: str, expected: bool) -> None:
    config = load_config(["--config=fashion_mnist_convnet", *options], prog="", description="")
    model, place = nn.Sequential(nn.Conv2d(1, 2, 3)), torch.device(device)
    assert choose_channels_last(config, model, place, autograd=True) is expected


@pytest.mark.parametrize(
    ("options", "model", "words"),
    [
        ((), nn.Linear(2, 2), "a model with convolutions"),
        (("--parallel.strategy=fsdp",), nn.Conv2d(1, 2, 3), "parallel.strategy ddp"),
        (("--parallel.reduction=exact",), nn.Conv2d(1, 2, 3), "parallel.reduction fast"),
    ],
)
def test_what_it_takes_is_said(options: tuple[str, ...], model: nn.Module, words: str) -> None:
    config = load_config([CHANNELS_LAST, *options], prog="", description="")
    with pytest.raises(InputError, match=rf"compile\.channels_last.*{words}"):
        choose_channels_last(config, model, torch.device("cpu"), autograd=True)
