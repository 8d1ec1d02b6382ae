"""ResNet-18 and -50 are the networks that everybody calls so; ResNet9 is David Page's."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from trainer.networks.resnet import BasicBlock, Bottleneck, ResNet, resnet18, resnet50
from trainer.networks.resnet9 import ResNet9


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(number: int, shape: tuple[int, ...], classes: int, stem: str = "auto") -> ResNet:
    with torch.device("meta"):
        return {18: resnet18, 50: resnet50}[number](shape, classes, stem)


@pytest.mark.parametrize(("number", "parameters"), [(18, 11_689_512), (50, 25_557_032)])
def test_for_imagenet_they_have_as_many_parameters_as_torchvisions(
    number: int, parameters: int
) -> None:
    assert size(on_meta(number, (3, 224, 224), 1000)) == parameters


def test_resnet9_has_as_many_parameters_as_its_author_s() -> None:
    assert size(ResNet9((3, 32, 32), 10)) == 6_573_120


@pytest.mark.parametrize(("number", "blocks", "convolutions"), [(18, 8, 2), (50, 16, 3)])
def test_the_keys_are_torchvisions(number: int, blocks: int, convolutions: int) -> None:
    """Law: every key is one of torchvision's, so its weights can be loaded as they are."""
    model = on_meta(number, (3, 224, 224), 1000)
    norm = "(weight|bias|running_mean|running_var|num_batches_tracked)"
    inside = rf"(conv[1-{convolutions}]\.weight|bn[1-{convolutions}]\.{norm})"
    shortcut = rf"downsample\.(0\.weight|1\.{norm})"
    stem = rf"conv1\.weight|bn1\.{norm}|fc\.(weight|bias)"
    allowed = re.compile(rf"{stem}|layer[1-4]\.[0-5]\.({inside}|{shortcut})")
    keys = list(model.state_dict())
    assert [key for key in keys if not allowed.fullmatch(key)] == []
    assert sum(key.endswith(".conv1.weight") for key in keys) == blocks
    assert sum("downsample.0" in key for key in keys) == (3 if number == 18 else 4)


@pytest.mark.parametrize(
    ("stem", "shape", "pixels"),
    [
        ("auto", (1, 28, 28), 28),
        ("auto", (3, 63, 80), 63),
        ("auto", (3, 64, 64), 16),
        ("cifar", (3, 64, 64), 64),
        ("imagenet", (3, 32, 32), 8),
    ],
)
def test_small_images_keep_their_pixels(stem: str, shape: tuple[int, ...], pixels: int) -> None:
    """Law: below 64 pixels the stem neither strides nor pools, unless it is told to."""
    heights: list[int] = []
    model = resnet18(shape, 10, stem=stem)
    model.layer1.register_forward_hook(lambda _, inputs, __: heights.append(inputs[0].shape[2]))
    model.eval()(torch.zeros(1, *shape))
    assert heights == [pixels]


@pytest.mark.parametrize("build", [resnet18, resnet50])
def test_a_block_starts_as_the_identity(build: type[ResNet]) -> None:
    model = build((3, 32, 32), 10).eval()
    plain = [block for block in model.blocks() if getattr(block, "downsample", None) is None]
    assert len(plain) in (5, 12)
    for block in plain:
        assert isinstance(block, BasicBlock | Bottleneck)
        channels = block.conv1.in_channels
        inputs = torch.rand(2, channels, 4, 4)
        assert torch.equal(block(inputs), inputs)
