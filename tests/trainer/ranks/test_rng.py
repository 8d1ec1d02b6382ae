"""Random number generators are data: captured, stored, restored."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.support.subjects import through_disk
from trainer.ranks.rng import capture_rng, restore_rng, seed_stream

CPU = torch.device("cpu")
Draw = Callable[[], list[float]]

DRAWS: dict[str, Draw] = {
    "torch uniform": lambda: torch.rand(5).tolist(),
    "torch normal": lambda: torch.randn(3).tolist(),
    "torch permutation": lambda: torch.randperm(9).tolist(),
    "torch dropout": lambda: torch.nn.functional.dropout(torch.ones(40)).tolist(),
    "numpy uniform": lambda: np.random.rand(5).tolist(),
    # One normal of a pair stays behind in the generator.
    "numpy normal": lambda: [float(np.random.randn())],
    "python uniform": lambda: [random.random() for _ in range(5)],
    "python normal": lambda: [random.gauss(0, 1)],
}


@pytest.mark.parametrize("name", list(DRAWS))
@pytest.mark.parametrize("drawn_before", [0, 1, 2])
def test_a_restored_generator_draws_the_same_numbers_again(name: str, drawn_before: int) -> None:
    draw = DRAWS[name]
    seed_stream(0, "test")
    for _ in range(drawn_before):
        draw()
    state = through_disk(capture_rng(CPU))
    first = [draw() for _ in range(3)]
    assert [draw() for _ in range(3)] != first
    restore_rng(state, CPU)
    assert [draw() for _ in range(3)] == first


@pytest.mark.parametrize("name", list(DRAWS))
def test_capturing_draws_nothing(name: str) -> None:
    seed_stream(0, "test")
    expected = DRAWS[name]()
    seed_stream(0, "test")
    capture_rng(CPU)
    assert DRAWS[name]() == expected


def test_a_captured_state_does_not_move_with_the_generators() -> None:
    state = capture_rng(CPU)
    expected = [DRAWS[name]() for name in DRAWS]
    restore_rng(state, CPU)
    for draw in DRAWS.values():
        draw()
    restore_rng(state, CPU)
    assert [DRAWS[name]() for name in DRAWS] == expected


@pytest.mark.parametrize("name", list(DRAWS))
def test_streams_of_different_purposes_differ_and_equal_ones_do_not(name: str) -> None:
    def first(seed: int, *purpose: object) -> tuple[float, ...]:
        seed_stream(seed, *purpose)
        return tuple(DRAWS[name]())

    purposes = [(0,), (1,), (0, "rank", 0), (0, "rank", 1), (0, "shard", 0, 1), (0, "shard", 1, 0)]
    found = [first(*purpose) for purpose in purposes]
    assert all(a != b for a, b in itertools.combinations(found, 2))
    assert [first(*purpose) for purpose in purposes] == found


@pytest.mark.gpu
def test_the_generator_of_the_gpu_is_captured_too(gpu: torch.device) -> None:
    device = torch.device(gpu.type, torch.cuda.current_device())
    before = capture_rng(device)
    try:
        state = through_disk(before)
        first = torch.rand(5, device=device)
        assert not torch.equal(torch.rand(5, device=device), first)
        restore_rng(state, device)
        assert torch.equal(torch.rand(5, device=device), first)
    finally:
        restore_rng(before, device)


@pytest.mark.gpu
def test_a_state_without_the_generator_of_the_gpu_is_an_error_there(gpu: torch.device) -> None:
    device = torch.device(gpu.type, torch.cuda.current_device())
    with pytest.raises(KeyError, match="cuda"):
        restore_rng(capture_rng(CPU), device)


def test_the_generator_of_an_apple_gpu_is_captured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not run on one: where the calls go, in a torch without it."""
    held = [torch.tensor([3], dtype=torch.uint8)]
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: held[0].clone())
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: held.__setitem__(0, state))
    state = capture_rng(torch.device("mps"))
    held[0] = torch.tensor([9], dtype=torch.uint8)
    restore_rng(state, torch.device("mps"))
    assert held[0].tolist() == [3]
    with pytest.raises(KeyError):
        restore_rng(capture_rng(CPU), torch.device("mps"))
