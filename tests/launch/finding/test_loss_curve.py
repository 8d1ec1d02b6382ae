"""The curve of a range test: smoothed without bias, read in spite of noise, written to files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from launch.finding.curve_files import draw_curve, write_curve
from launch.finding.loss_curve import LossCurve, suggest


def curve_of(losses: list[float], *, span: float = 5.0) -> LossCurve:
    """A curve from 1e-7 to 1."""
    curve = LossCurve(span=span)
    for index, loss in enumerate(losses):
        curve.add(10 ** (-7 + 7 * index / (len(losses) - 1)), loss)
    return curve


def test_the_smoothed_curve_is_a_moving_average_without_bias() -> None:
    """Weights 0.8^k over the losses so far, normalised to a sum of 1."""
    losses = [4.0, 2.0, 7.0, 1.0]
    curve = curve_of(losses, span=5.0)
    for end in range(1, 5):
        weights = [0.8 ** (end - 1 - k) for k in range(end)]
        expected = sum(w * x for w, x in zip(weights, losses, strict=False)) / sum(weights)
        assert curve.smoothed[end - 1] == pytest.approx(expected)
    assert curve_of(losses, span=1.0).smoothed == losses


def hill(fall: float, rise: float, num_steps: int = 100) -> list[float]:
    """Losses that fall fastest at 10^fall and explode at 10^rise."""
    rates = [-7 + 7 * index / (num_steps - 1) for index in range(num_steps)]
    return [2.3 - 2 / (1 + math.exp(-3 * (x - fall))) + math.exp(4 * (x - rise)) for x in rates]


@pytest.mark.parametrize("fall", [-4.0, -3.0, -2.5])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_the_steepest_descent_is_found_in_spite_of_noise_and_lag(fall: float, noise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    jitter = (noise * torch.randn(100, generator=generator)).tolist()
    losses = [a + b for a, b in zip(hill(fall, -0.5), jitter, strict=True)]
    found = suggest(curve_of(losses))
    assert found is not None
    assert math.log10(found.steepest) == pytest.approx(fall, abs=0.35)


def test_the_minimum_is_that_of_the_smoothed_curve() -> None:
    curve = curve_of(hill(-3.0, -0.5))
    found = suggest(curve)
    assert found is not None
    assert found.minimum == curve.learning_rates[curve.smoothed.index(min(curve.smoothed))]
    assert found.tenth == found.minimum / 10
    assert found.steepest < found.minimum


@pytest.mark.parametrize(
    "losses",
    [
        [2.3] * 100,
        [2.3 + 0.01 * index for index in range(100)],
        [2.3 - 1e-4 * index for index in range(100)],
        [2.3, 2.2, 2.1],
        [],
    ],
    ids=["flat", "rising", "hardly falling", "too short", "empty"],
)
def test_a_loss_that_does_not_fall_gives_no_suggestion(losses: list[float]) -> None:
    assert suggest(curve_of(losses)) is None


@pytest.mark.parametrize("losses", [hill(-3.0, -0.5), [2.3] * 50, []], ids=["hill", "flat", "none"])
def test_curve_and_picture_are_written_with_and_without_a_suggestion(
    tmp_path: Path, losses: list[float]
) -> None:
    curve = curve_of(losses)
    found = suggest(curve)
    write_curve(tmp_path / "curve.json", curve, found)
    draw_curve(tmp_path / "curve.png", curve, found)
    read = json.loads((tmp_path / "curve.json").read_text())
    assert read["losses"] == losses
    assert len(read["learning_rates"]) == len(read["smoothed"]) == len(losses)
    assert (read["suggestion"] is None) == (found is None)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.json", "curve.png"]
