"""Residual networks of He et al., Deep Residual Learning for Image Recognition, arXiv:1512.03385.

Modules have torchvision's names, so weights move between the two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.layers import conv, expect_kwarg, image_size

STEMS = ("auto", "cifar", "imagenet")
SMALL = 64
"""Images with a side below this get the stem of small images."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(before, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        nn.init.zeros_(self.bn2.weight)
        self.downsample = shortcut(before, width * self.expansion, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = F.relu(self.bn1(self.conv1(inputs)))
        outputs = self.bn2(self.conv2(outputs))
        return F.relu(outputs + (inputs if self.downsample is None else self.downsample(inputs)))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1, beside a shortcut.

    The 3x3 convolution has the stride, not the first one as in the paper: what everybody calls
    ResNet-50 today, since it is more accurate (https://github.com/facebookarchive/fb.resnet.torch).
    """

    expansion = 4

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = width * self.expansion
        self.conv1 = conv(before, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, after, 1)
        self.bn3 = nn.BatchNorm2d(after)
        nn.init.zeros_(self.bn3.weight)
        self.downsample = shortcut(before, after, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = F.relu(self.bn1(self.conv1(inputs)))
        outputs = F.relu(self.bn2(self.conv2(outputs)))
        outputs = self.bn3(self.conv3(outputs))
        return F.relu(outputs + (inputs if self.downsample is None else self.downsample(inputs)))


def shortcut(before: int, after: int, stride: int) -> nn.Module | None:
    """A projection where the shape changes, nothing elsewhere (option B of the paper)."""
    if stride == 1 and before == after:
        return None
    return nn.Sequential(conv(before, after, 1, stride), nn.BatchNorm2d(after))


class ResNet(nn.Module):
    """Four stages of residual blocks, each with twice the channels on half the pixels.

    The last batch normalisation of every block starts at zero, so that a block starts as the
    identity (Goyal et al., arXiv:1706.02677, section 5.1).

    Args:
        input_shape: `(channels, height, width)`, of any size.
        num_classes: Number of logits.
        block: `BasicBlock` or `Bottleneck`.
        depths: Number of blocks in each of the four stages.
        stem: `imagenet` is the 7x7 convolution of stride 2 and the max-pool of the paper; `cifar`
            is a 3x3 convolution alone, which leaves the pixels of small images; `auto` takes
            `cifar` for images with a side below 64 pixels.

    Shapes:
        `(B, C, H, W)` float -> `(B, num_classes)` logits.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        stem: str = "auto",
    ) -> None:
        super().__init__()
        expect_kwarg("stem", stem, stem in STEMS, f"one of {', '.join(STEMS)}")
        channels, height, width = image_size("a ResNet", input_shape)
        small = min(height, width) < SMALL if stem == "auto" else stem == "cifar"
        self.conv1 = conv(channels, 64, 3) if small else conv(channels, 64, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        before, stages = 64, []
        for position, depth in enumerate(depths):
            width, stage = 64 * 2**position, list[nn.Module]()
            for index in range(depth):
                stage.append(block(before, width, 2 if position and not index else 1))
                before = width * block.expansion
            stages.append(nn.Sequential(*stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(before, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.maxpool(F.relu(self.bn1(self.conv1(inputs))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits

    def blocks(self) -> list[nn.Module]:
        """The residual blocks, in the order in which they are applied."""
        return [*self.layer1, *self.layer2, *self.layer3, *self.layer4]


def resnet18(input_shape: Sequence[int], num_classes: int, stem: str = "auto") -> ResNet:
    """ResNet-18: 11.7 million parameters for ImageNet."""
    return ResNet(input_shape, num_classes, block=BasicBlock, depths=(2, 2, 2, 2), stem=stem)


def resnet50(input_shape: Sequence[int], num_classes: int, stem: str = "auto") -> ResNet:
    """ResNet-50: 25.6 million parameters for ImageNet."""
    return ResNet(input_shape, num_classes, block=Bottleneck, depths=(3, 4, 6, 3), stem=stem)
