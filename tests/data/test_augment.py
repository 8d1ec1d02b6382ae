"""Random geometry: the maps it says, drawn from the generator that checkpoints restore."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from configs.errors import InputError
from configs.schema import AugmentConfig
from data.augment import build_augment


@pytest.fixture(autouse=True)
def generator_is_put_back() -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def dots(count: int = 64, at: tuple[int, int] = (8, 8)) -> Tensor:
    """Images of 17 x 17 pixels with one bright pixel."""
    images = torch.zeros(count, 1, 17, 17, dtype=torch.uint8)
    images[:, :, at[0], at[1]] = 200
    return images


def centres(images: Tensor) -> Tensor:
    """Centre of mass of each image as (row, column)."""
    mass = images.sum((1, 2, 3))
    places = torch.arange(17.0)
    rows = (images.sum((1, 3)) * places).sum(1) / mass
    return torch.stack([rows, (images.sum((1, 2)) * places).sum(1) / mass], 1)


def test_without_amounts_nothing_is_touched() -> None:
    images = dots()
    assert build_augment(AugmentConfig(), (1, 17, 17))(images) is images


def test_shifts_reach_their_limit_and_not_further() -> None:
    """Law: uniform in [-shift, shift] along both axes, independently."""
    torch.manual_seed(0)
    images = build_augment(AugmentConfig(shift=3), (1, 17, 17))(dots(4000))
    assert images.dtype is torch.float32
    moved = centres(images) - 8
    assert 2.9 < float(moved.abs().max()) <= 3.001
    assert float(moved.mean(0).abs().max()) < 0.15
    assert abs(float(torch.corrcoef(moved.t())[0, 1])) < 0.06
    # A shift spreads a pixel over its neighbours but loses nothing.
    torch.testing.assert_close(images.sum((1, 2, 3)), torch.full((4000,), 200.0), rtol=1e-4, atol=0)


def test_rotation_keeps_distances_and_stays_within_its_limit() -> None:
    torch.manual_seed(1)
    augment = build_augment(AugmentConfig(rotate=30), (1, 17, 17))
    moved = centres(augment(dots(2000, at=(8, 14)))) - 8
    torch.testing.assert_close(moved.norm(dim=1), torch.full((2000,), 6.0), rtol=0.05, atol=0)
    angles = torch.atan2(moved[:, 0], moved[:, 1]) * 180 / math.pi
    assert 27 < float(angles.max()) < 32
    assert -32 < float(angles.min()) < -27


def test_scale_and_shear_move_what_is_off_centre() -> None:
    torch.manual_seed(2)
    scaled = centres(build_augment(AugmentConfig(scale=0.2), (1, 17, 17))(dots(500, at=(8, 13))))
    assert 5 / 1.25 < float(scaled[:, 1].min() - 8) < 4.6
    assert 5.4 < float(scaled[:, 1].max() - 8) < 5 / 0.78
    assert float((scaled[:, 0] - 8).abs().max()) < 0.2
    sheared = centres(build_augment(AugmentConfig(shear=0.5), (1, 17, 17))(dots(500, at=(12, 8))))
    assert 1.7 < float((sheared[:, 1] - 8).abs().max()) < 2.2
    assert float((sheared[:, 0] - 12).abs().max()) < 0.2


def test_the_same_generator_state_gives_the_same_images() -> None:
    augment = build_augment(AugmentConfig(shift=2, rotate=10, scale=0.1, shear=0.1), (1, 17, 17))
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append((augment(dots()), augment(dots())))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][0], found[0][1])


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.augment.*channels, height, width"):
        build_augment(AugmentConfig(shift=1), (12,))


@pytest.mark.parametrize("key", ["shift", "rotate", "scale", "shear"])
@pytest.mark.parametrize("value", [-0.1, 1e9, float("nan")])
def test_amounts_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"data\.augment\.{key}"):
        AugmentConfig(**{key: value})
