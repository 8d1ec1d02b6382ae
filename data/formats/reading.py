"""What a trained model takes, and what may be done to an image to make it fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.errors import InputError
from data.facts import InputFacts, PictureFit


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the model takes, and what may be done to an image to make it fit."""

    facts: InputFacts
    resize: bool = False
    """Bring other sizes to the model's: as training did, or bilinear, aspect not kept."""
    invert: bool = False
    """255 - value: a dark drawing on white becomes light on black."""

    def finish(self, images: Tensor) -> Tensor:
        """`(n, C, h, w)` -> `(n, C, H, W)`, inverted if asked for."""
        shape = self.facts.input_shape
        if images.shape[1:] != shape:
            how = self.facts.fit
            images = (
                torch.stack([fit(image, how) for image in images])
                if how
                else _resize(images, shape[1:])
            )
        return 255 - images if self.invert else images

    @property
    def dtype_name(self) -> str:
        return self.facts.dtype or "numbers"

    def wrong_size(self, name: str, size: tuple[int, ...]) -> InputError:
        return InputError(
            f"{name}: height and width",
            given=tuple(size),
            expected=f"{self.facts.input_shape[1:]}, as in training",
            remedy="Use --resize to bring it to that size.",
        )


def fit(pixels: Tensor, how: PictureFit) -> Tensor:
    """A decoded picture `(C, h, w)` -> `(C, *how.size)`, bilinear with antialiasing."""
    now, (height, width) = pixels.shape[1:], how.size
    scale = max(side / how.crop / own for side, own in zip(how.size, now, strict=True))
    resized = [max(round(own * scale), side) for side, own in zip(how.size, now, strict=True)]
    if resized != list(now):
        # Torch's kernel fails on 3 x h x w -> 3 x 1 x 1 in any other layout; the bits are the same.
        stored = pixels[None].contiguous(memory_format=torch.channels_last)
        pixels = F.interpolate(stored, size=resized, mode="bilinear", antialias=True)[0]
    top, left = (resized[0] - height) // 2, (resized[1] - width) // 2
    return pixels[:, top : top + height, left : left + width].contiguous()


def _resize(images: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear with antialiasing, computed in float32 and rounded back to whole numbers."""
    resized = F.interpolate(
        images.to(torch.float32), size=list(size), mode="bilinear", antialias=True
    )
    return resized.to(images.dtype) if images.is_floating_point() else resized.round().to(images)
