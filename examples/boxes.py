"""A detector of torchvision: pictures of several sizes, with any number of boxes in each.

While it trains it gives losses by name, in an evaluation boxes, as all detectors of torchvision do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign, box_iou


class Pictures(torch.utils.data.Dataset):
    """Noise `(3, H, W)` with up to two squares in it, bright ones and dark ones."""

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples, self.seed = num_samples, seed

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        height, width = torch.randint(44, 65, (2,), generator=generator).tolist()
        image = 0.4 + 0.2 * torch.rand(3, height, width, generator=generator)
        boxes, labels = torch.zeros(index % 3, 4), torch.zeros(index % 3, dtype=torch.int64)
        for number in range(index % 3):  # the second one to the right of the first
            side, top, left, label = torch.randint(0, 8, (4,), generator=generator).tolist()
            side, left, label = side + 12, left + number * width // 2, 1 + label % 2
            image[:, top : top + side, left : left + side] += 0.4 if label == 1 else -0.4
            boxes[number] = torch.tensor([left, top, min(left + side, width), top + side])
            labels[number] = label
        return image.clamp(0, 1), {"boxes": boxes, "labels": labels}


def build(num_train: int = 203) -> tuple[Pictures, Pictures]:
    return Pictures(num_train, 0), Pictures(60, 1)


def collate(samples: list[Any]) -> Any:
    return tuple(zip(*samples, strict=True))


def detector() -> nn.Module:
    sizes = [(3, 16), (16, 32), (32, 32)]
    layers = [(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU()) for a, b in sizes]
    backbone = nn.Sequential(*(part for pair in layers for part in pair))
    backbone.out_channels = 32
    return FasterRCNN(
        backbone,
        min_size=64,
        max_size=96,
        rpn_anchor_generator=AnchorGenerator(((14, 20),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 5, 2),
        box_head=TwoMLPHead(32 * 25, 64),
        box_predictor=FastRCNNPredictor(64, num_classes=3),
    )


class Found:
    """The part of the boxes that are found, with their class."""

    width = 2
    higher_is_better = True

    def sums(self, outputs: Any, targets: Any) -> Tensor:
        found = total = 0
        for said, there in zip(outputs, targets, strict=True):
            close = box_iou(there["boxes"].float(), said["boxes"].float()) > 0.5
            alike = there["labels"][:, None] == said["labels"]
            sure = said["scores"] > 0.5
            found += int((close & alike & sure).any(1).sum())
            total += len(there["labels"])
        return torch.tensor([found, total])

    def compute(self, sums: list[float], count: int) -> dict[str, float]:
        return {"recall": sums[0] / max(sums[1], 1)}
