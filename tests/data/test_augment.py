"""Random geometry: the maps it says, drawn from the generator that checkpoints restore."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from configs.errors import InputError
from configs.schema import AugmentConfig
from data.augment import _beta, build_augment


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


def geometry(config: AugmentConfig) -> Callable[[Tensor], Tensor]:
    augment = build_augment(config, (1, 17, 17), 10)

    def move(images: Tensor) -> Tensor:
        targets = torch.zeros(len(images), dtype=torch.int64)
        moved, same = augment(images, targets)
        assert same is targets
        return moved

    return move


def test_without_amounts_nothing_is_touched() -> None:
    images = dots()
    assert geometry(AugmentConfig())(images) is images


def test_shifts_reach_their_limit_and_not_further() -> None:
    """Law: any whole number of pixels up to `shift` along both axes, alike and independently."""
    torch.manual_seed(0)
    images = geometry(AugmentConfig(shift=3))(dots(4000))
    assert images.dtype is torch.float32
    moved = centres(images) - 8
    whole = moved.round()
    torch.testing.assert_close(moved, whole, atol=1e-3, rtol=0)
    for axis in (0, 1):
        counts = torch.bincount((whole[:, axis] + 3).long(), minlength=7)
        assert len(counts) == 7
        assert 4000 / 7 * 0.8 < float(counts.min()) <= float(counts.max()) < 4000 / 7 * 1.2
    assert float(moved.mean(0).abs().max()) < 0.15
    assert abs(float(torch.corrcoef(moved.t())[0, 1])) < 0.06
    # No pixel is lost or blurred.
    torch.testing.assert_close(images.sum((1, 2, 3)), torch.full((4000,), 200.0), rtol=1e-4, atol=0)


def test_rotation_keeps_distances_and_stays_within_its_limit() -> None:
    torch.manual_seed(1)
    augment = geometry(AugmentConfig(rotate=30))
    moved = centres(augment(dots(2000, at=(8, 14)))) - 8
    torch.testing.assert_close(moved.norm(dim=1), torch.full((2000,), 6.0), rtol=0.05, atol=0)
    angles = torch.atan2(moved[:, 0], moved[:, 1]) * 180 / math.pi
    assert 27 < float(angles.max()) < 32
    assert -32 < float(angles.min()) < -27


def test_scale_and_shear_move_what_is_off_centre() -> None:
    torch.manual_seed(2)
    scaled = centres(geometry(AugmentConfig(scale=0.2))(dots(500, at=(8, 13))))
    assert 5 / 1.25 < float(scaled[:, 1].min() - 8) < 4.6
    assert 5.4 < float(scaled[:, 1].max() - 8) < 5 / 0.78
    assert float((scaled[:, 0] - 8).abs().max()) < 0.2
    sheared = centres(geometry(AugmentConfig(shear=0.5))(dots(500, at=(12, 8))))
    assert 1.7 < float((sheared[:, 1] - 8).abs().max()) < 2.2
    assert float((sheared[:, 0] - 12).abs().max()) < 0.2


def test_the_same_generator_state_gives_the_same_images() -> None:
    augment = geometry(AugmentConfig(shift=2, rotate=10, scale=0.1, shear=0.1))
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append((augment(dots()), augment(dots())))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][0], found[0][1])


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.augment.*channels, height, width"):
        build_augment(AugmentConfig(shift=1), (12,), 10)


@pytest.mark.parametrize("key", ["shift", "rotate", "scale", "shear", "flip", "mixup", "cutmix"])
@pytest.mark.parametrize("value", [-0.1, 1e9, float("nan")])
def test_amounts_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"data\.augment\.{key}"):
        AugmentConfig(**{key: value})


def marked(count: int) -> tuple[Tensor, Tensor]:
    """Images that say everywhere which class they are of."""
    targets = torch.arange(count) % 5
    images = (40 * targets).to(torch.uint8)[:, None, None, None].expand(count, 1, 17, 17)
    return images.contiguous(), targets


@pytest.mark.parametrize("keys", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_classes_are_mixed_in_the_proportions_of_the_pixels(keys: dict[str, float]) -> None:
    """Law: the mean of an image is the mean of its classes, and weights add up to 1."""
    torch.manual_seed(4)
    augment = build_augment(AugmentConfig(**keys), (1, 17, 17), 5)
    images, targets = marked(30)
    values = 40 * torch.arange(5.0)
    mixed_once = False
    for _ in range(20):
        mixed, weights = augment(images, targets)
        assert (mixed.dtype, weights.shape) == (torch.float32, (30, 5))
        torch.testing.assert_close(weights.sum(1), torch.ones(30))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), weights @ values, atol=2e-3, rtol=1e-4)
        mixed_once |= bool((weights.max(1).values < 0.95).any())
    assert mixed_once


def test_cutmix_pastes_one_box_and_mixup_blends_everything() -> None:
    images, targets = marked(30)
    torch.manual_seed(5)
    cut, _ = build_augment(AugmentConfig(cutmix=1.0), (1, 17, 17), 5)(images, targets)
    assert set(cut.unique().tolist()) <= {0.0, 40.0, 80.0, 120.0, 160.0}
    blended, _ = build_augment(AugmentConfig(mixup=1.0), (1, 17, 17), 5)(images, targets)
    assert bool((blended == blended[:, :, :1, :1]).all())


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_proportions_are_of_the_beta_distribution(alpha: float) -> None:
    """Mean 1/2 and variance 1 / (4 (2 alpha + 1)), from 4,000 draws."""
    torch.manual_seed(6)
    draws = torch.stack([_beta(alpha, torch.device("cpu")) for _ in range(4000)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert float(draws.mean()) == pytest.approx(0.5, abs=5 * (variance / 4000) ** 0.5)
    assert float(draws.var()) == pytest.approx(variance, rel=0.1)


def test_only_classes_can_be_mixed() -> None:
    with pytest.raises(InputError, match=r"task\.name=classification"):
        build_augment(AugmentConfig(mixup=0.2), (12,), None)


def test_a_batch_without_samples_stays_one() -> None:
    augment = build_augment(AugmentConfig(mixup=0.4, cutmix=1.0), (1, 17, 17), 5)
    mixed, weights = augment(torch.zeros(0, 1, 17, 17), torch.zeros(0, dtype=torch.int64))
    assert (mixed.shape, weights.shape) == ((0, 1, 17, 17), (0, 5))


def test_flips_change_left_and_right_as_often_as_asked() -> None:
    torch.manual_seed(7)
    images = torch.rand(2000, 1, 6, 5)
    flipped = geometry_of(images, AugmentConfig(flip=0.25))
    same = ((flipped - images).abs() < 1e-4).flatten(1).all(1)
    mirrored = ((flipped - images.flip(3)).abs() < 1e-4).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 0.2 < float(mirrored.double().mean()) < 0.3


def geometry_of(images: Tensor, config: AugmentConfig) -> Tensor:
    augment = build_augment(config, tuple(images.shape[1:]), 10)
    return augment(images, torch.zeros(len(images), dtype=torch.int64))[0]


def test_sub_pixel_shifts_stay_within_their_limit() -> None:
    """With another movement everything is interpolated anyway."""
    torch.manual_seed(8)
    moved = centres(geometry(AugmentConfig(shift=3, scale=1e-6))(dots(4000))) - 8
    assert 2.9 < float(moved.abs().max()) <= 3.001
    assert float(moved.mean(0).abs().max()) < 0.15
