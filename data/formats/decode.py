"""Pictures as samples: decoded, perhaps transformed, and brought to one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from configs.errors import expect
from data.facts import PictureFit
from data.formats.picture import MODES, check_picture, opened, to_tensor
from data.formats.reading import fit
from data.options import MomentOptions
from data.samples import moments_of_some
from data.transforms import apply, build_transforms

IMAGENET = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
"""Mean and deviation that most published networks were trained with."""


@dataclass(frozen=True, kw_only=True)
class PictureOptions(MomentOptions):
    """Options of data sets of pictures; mean and deviation default to ImageNet's for RGB, else to
    0.5 and 0.25."""

    size: int | tuple[int, ...] = 224
    """Height and width that the model gets: one number, or two."""
    crop: float = 1.0
    """Part of the resized picture's sides that the central crop keeps."""
    channels: int = 3
    """1: grey, 3: RGB, 4: RGBA."""
    augment: tuple[Any, ...] = ()
    """Transforms of training pictures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sides = self.height_width
        expect(self, "data.kwargs.size", len(sides) == 2 and min(sides) >= 1, "1 pixel or more")
        expect(self, "data.kwargs.crop", 0 < self.crop <= 1, "above 0, at most 1")
        expect(self, "data.kwargs.channels", self.channels in MODES, "1, 3 or 4")

    @property
    def height_width(self) -> tuple[int, ...]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def fit(self) -> PictureFit:
        height, width = self.height_width
        return PictureFit(size=(height, width), crop=self.crop)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.channels, *self.height_width)

    def moments(self, shape: Sequence[int]) -> dict[str, Any]:
        """Mean and deviation for pictures of that shape, as given or ImageNet's."""
        mean, std = IMAGENET.get(self.channels, ((0.5,), (0.25,)))
        return self.given(shape) or {"mean": mean, "std": std}

    def normalisation(self, first: Tensor, *, pictures: bool) -> dict[str, Any]:
        """What `Datasets` has to know of it for inputs like the first one: of pictures always, of
        vectors of floats as they are, of anything else only what was given."""
        if pictures:
            return self.moments(first.shape)
        vectors = first.ndim == 1 and first.is_floating_point()
        return self.given(first.shape) or ({"measure": moments_of_some} if vectors else {})


class PictureReader:
    """Files, bytes or Pillow's images -> uint8 `(C, H, W)` of one size.

    Args:
        options: Size, channels and transforms.
        training: Whether the transforms apply. They see the picture as it was decoded; what they
            give is brought to the size without a further crop.

    Raises:
        InputError: When called, for a picture that cannot be used; the message names it.
    """

    def __init__(self, options: PictureOptions, *, training: bool) -> None:
        self.options = options
        self.transforms = build_transforms(options.augment) if training else []
        self.how = replace(options.fit, crop=1.0) if self.transforms else options.fit

    def as_for(self, *, training: bool) -> PictureReader:
        """The same reader for training or for evaluation."""
        return PictureReader(self.options, training=training)

    def __call__(self, source: Path | bytes, name: str) -> Tensor:
        with opened(source, name) as image:
            return self.finish(image, name)

    def finish(self, image: Any, name: str) -> Tensor:
        """The same for a picture that is open already."""
        check_picture(image, name)
        pixels = to_tensor(image, self.options.channels, name)
        return fit(apply(self.transforms, pixels), self.how)
