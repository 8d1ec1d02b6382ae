"""A module that is built without memory gets the bits of one that was built whole."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.init import orthogonal_

from trainer.networks.deferred import Deferred, NotDeferred
from trainer.networks.models import MODELS
from trainer.ranks.rng import seed_stream


class Initialised(nn.Module):
    """Its layers draw their weights, and then it draws them again; one of them twice as large."""

    def __init__(self, layers: int = 6, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.embedding = nn.Embedding(40, width)
        self.head = nn.Linear(width, 40, bias=False)
        self.head.weight = self.embedding.weight  # tied
        self.scale = nn.Parameter(torch.tensor([1.5, 2.5]))  # with its values
        self.register_buffer("positions", torch.arange(12).reshape(3, 4))
        self.register_buffer("table", torch.outer(torch.arange(3.0), torch.rand(4)).cos())
        self.apply(self._start)
        with torch.no_grad():
            self.layers[1].weight.mul_(2).add_(self.layers[0].weight)
            self.layers[2].weight[3:5].fill_(7.0)
            orthogonal_(self.layers[3].weight)
            nn.init.sparse_(self.layers[5].weight[:16], 0.5)
            self.layers[4].weight.copy_(self.layers[3].weight.T)

    def _start(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=0.02)


class Frozen(nn.Module):
    """Parts that are copies, in half precision, and not trained."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 24)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.BatchNorm1d(16)
        self.half = nn.Conv1d(4, 8, 3).to(torch.bfloat16).requires_grad_(False)
        self.other = copy.deepcopy(self.half)
        self.register_buffer("late", torch.ones(3), persistent=False)


def named(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def network(name: str) -> Callable[[], nn.Module]:
    shape, classes = ((8,), 20) if name == "gpt" else ((3, 32, 32), 5)
    return lambda: MODELS[name](input_shape=shape, num_classes=classes)


CASES: dict[str, Callable[[], nn.Module]] = {
    **{name: network(name) for name in MODELS},
    "initialised twice": Initialised,
    "copies": Frozen,
}


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_has_the_bits_of_a_module_that_was_built_whole(name: str) -> None:
    """Law: and the random generators are afterwards where they would be."""
    seed_stream(3, "weights")
    expected = CASES[name]()
    after = torch.get_rng_state()
    deferred = Deferred(CASES[name], lambda: seed_stream(3, "weights"))
    ours = named(deferred.module)
    assert all(tensor.is_meta for tensor in ours.values())
    found = {key: value.clone() for key, value in deferred.values()}
    assert torch.equal(torch.get_rng_state(), after)
    assert ours.keys() == named(expected).keys()
    for key, value in named(expected).items():
        assert found[key].dtype is ours[key].dtype is value.dtype
        assert found[key].stride() == value.stride()
        assert torch.equal(found[key], value), key
        assert ours[key].requires_grad == value.requires_grad


def test_only_what_is_still_to_be_changed_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: of a deep network, whose weights are drawn twice, a few layers at a time."""
    peaks = [0]
    do = Deferred._do

    def watched(self: Deferred, operation: Any, memory: dict[int, Any]) -> None:
        do(self, operation, memory)
        peaks.append(sum(storage.nbytes() for storage in memory.values()))

    monkeypatch.setattr(Deferred, "_do", watched)
    deferred = Deferred(lambda: Initialised(40), lambda: seed_stream(0))
    whole = sum(tensor.nbytes for tensor in named(deferred.module).values())
    for _ in deferred.values():
        pass
    assert len(peaks) > 200
    assert max(peaks) < whole / 4


class Looks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        if float(self.linear.weight.sum()) > 0:
            self.linear.bias.data.zero_()


class Asks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        if not self.linear.weight.is_meta:
            nn.init.zeros_(self.linear.weight)


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.tables = {"cos": [torch.rand(4)]}


class Comes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Looks, "meta"),
        (Asks, "test_deferred does otherwise with tensors on meta"),
        (Keeps, "tables is a tensor and neither a parameter nor a buffer"),
        (Comes, "it comes with its weights"),
    ],
)
def test_a_module_that_cannot_wait_for_its_values_says_why(
    module: Callable[[], nn.Module], reason: str
) -> None:
    with pytest.raises(NotDeferred, match=reason):
        Deferred(module, lambda: seed_stream(0))


def test_weights_whose_shapes_the_first_sample_says_are_not_deferred() -> None:
    with pytest.raises(NotDeferred, match="the first sample says"):
        Deferred(lambda: nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)), lambda: None)
