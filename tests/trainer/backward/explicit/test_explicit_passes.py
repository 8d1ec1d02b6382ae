"""Passes written out: the gradient of autograd, and a dropout that is one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.explicit import (
    DTYPES,
    SCALE,
    Dtype,
    as_batch,
    batch,
    explicit,
    network,
    normalize,
)
from trainer.backward.explicit.explicit_passes import ExplicitPasses
from trainer.backward.explicit.plain_layers import describe
from trainer.networks.dropout import LEVELS
from trainer.networks.mlp import MLP


def taken(passes: ExplicitPasses) -> Tensor:
    out = torch.empty(passes.size, device=passes.flat.gradients.device)
    passes.pop_gradient(out)
    return out


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


def masked(module: nn.Module, inputs: Tensor, masks: list[Tensor]) -> Tensor:
    """The network with given dropout masks, for autograd."""
    values, masks = inputs.flatten(1), list(masks)
    linears = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    for layer in linears[:-1]:
        values = torch.relu(layer(values))
        values = values * masks.pop(0) if masks else values
    return linears[-1](values)


def drawn(passes: ExplicitPasses, size: int, count: int = 1, index: int = 0) -> list[Tensor]:
    """The masks of one of `count` batches of that size that were made ready together."""
    views = passes.workspaces[count, size].batches[index]
    return [keep for keep in views.keep if len(keep)]


@pytest.mark.parametrize("hidden", [(), (9,), (9, 7), (16, 33, 8)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("dropout", [0.0, 0.2, 0.5])
def test_the_gradient_is_that_of_autograd(
    hidden: tuple[int, ...], smoothing: float, dropout: float
) -> None:
    """Law: with the masks it drew, autograd finds the same loss, hits and gradient; two batches
    of different size add up."""
    module = network(dropout=dropout, hidden=hidden)
    plain = copy.deepcopy(module)
    passes = explicit(module, smoothing)
    for index, size in enumerate((6, 3)):
        inputs, targets = batch(size, index)
        loss, correct, _ = passes(as_batch(inputs, targets), 0.25)
        scale = LEVELS / (LEVELS - round(dropout * LEVELS))
        masks = [keep * scale for keep in drawn(passes, size)]
        logits = masked(plain, normalize()(inputs), masks)
        expected = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
        (expected * 0.25).backward()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-5)
        assert int(correct) == int((logits.argmax(1) == targets).sum())
    for mine, theirs in zip(gradients(module), gradients(plain), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("hidden", [(), (33,), (40, 17)])
def test_in_lower_precision_the_gradient_is_no_further_off_than_that_of_autocast(
    hidden: tuple[int, ...], dropout: float, dtype: Dtype
) -> None:
    """Law: against float64, over two micro-batches; and further off than in float32."""
    module = network(dropout=dropout, hidden=hidden)
    plain, exact = copy.deepcopy(module), copy.deepcopy(module).double()
    passes = explicit(module, 0.1, dtype)
    scale = LEVELS / (LEVELS - round(dropout * LEVELS))
    loss_scale = SCALE if dtype == "fp16" else 1.0
    rounded = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    for index, size in enumerate((24, 9)):
        inputs, targets = batch(size, index)
        loss, *_ = passes(as_batch(inputs, targets), 0.25)
        masks = [keep * scale for keep in drawn(passes, size)]
        assert all(mask.dtype is rounded for mask in masks)
        values = normalize()(inputs)
        with torch.autocast("cpu", rounded):
            logits = masked(plain, values, masks)
        losses = []
        for outputs in (logits.float(), masked(exact, values.double(), masks)):
            losses.append(F.cross_entropy(outputs, targets, reduction="sum", label_smoothing=0.1))
            (losses[-1] * 0.25 * loss_scale).backward()
        torch.testing.assert_close(loss.double(), losses[1].detach(), rtol=1e-2, atol=1e-3)
    mine, theirs, truth = (
        torch.cat([gradient.double().reshape(-1) for gradient in gradients(network)])
        for network in (module, plain, exact)
    )
    error, length = float((mine - truth).norm()), float(truth.norm())
    assert 1e-5 * length < error < 1.5 * float((theirs - truth).norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_batches_made_ready_together_have_the_bits_of_batches_one_by_one(
    dropout: float, smoothing: float, dtype: Dtype
) -> None:
    """Law: loss, hits, gradient and generator do not tell; nor do they when a sum goes on."""
    module = network(dropout=dropout)
    together = explicit(copy.deepcopy(module), smoothing, dtype)
    alone = explicit(module, smoothing, dtype)
    parts = [batch(6, seed) for seed in range(5)]
    inputs, targets = (torch.cat(part) for part in zip(*parts, strict=True))
    for first, count in ((0, 3), (3, 2), (0, 5)):
        found = []
        for passes in (together, alone):
            torch.manual_seed(first)
            rows: list[Tensor] = []
            span = slice(6 * first, 6 * (first + count))
            metrics: list[Tensor | None] = []
            if passes is together:
                passes.stage(inputs[span], targets[span], 0.5, count)
            for index in range(first, first + count):
                if index % 2:
                    passes.clear()
                metrics += passes(as_batch(*parts[index]), 0.5)[:2]
                rows += [gradient.clone() for gradient in passes.flat.views(passes.flat.gradients)]
            known = [value for value in metrics if value is not None]
            if passes is alone:
                known = [torch.stack(known[::2]), torch.stack(known[1::2])]
            found.append([*rows, *known, torch.get_rng_state()])
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_clearing_begins_a_new_sum(dtype: Dtype) -> None:
    module = network()
    passes = explicit(module, dtype=dtype)
    passes(as_batch(*batch(6)), 1.0)
    once = [gradient.clone() for gradient in gradients(module)]
    passes(as_batch(*batch(6)), 1.0)
    for twice, first in zip(gradients(module), once, strict=True):
        torch.testing.assert_close(twice, 2 * first)
    passes.clear()
    passes(as_batch(*batch(6)), 1.0)
    for again, first in zip(gradients(module), once, strict=True):
        assert torch.equal(again, first)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rank_without_samples_adds_nothing(dtype: Dtype) -> None:
    """Law: a short batch may leave a rank or a shard with an empty part; its gradient is zero."""
    module = network(dropout=0.3)
    passes = explicit(module, 0.1, dtype)
    passes(as_batch(*batch(6)), 1.0)
    before = [gradient.clone() for gradient in gradients(module)]
    loss, correct, _ = passes(as_batch(*batch(0)), 1.0)
    assert (float(loss), int(correct)) == (0.0, 0)
    for mine, expected in zip(gradients(module), before, strict=True):
        assert torch.equal(mine, expected)
    passes.clear()
    passes(as_batch(*batch(0)), 1.0)
    assert not any(gradient.count_nonzero() for gradient in gradients(module))
    assert not taken(passes).count_nonzero()


def test_the_weights_are_read_anew_for_every_batch() -> None:
    """A copy of another type must not outlive a step."""
    found = []
    for changes in (True, False):
        module = network()
        passes = explicit(module, dtype="bf16")
        for last in (False, True):
            if changes or last:
                passes(as_batch(*batch(6)), 1.0)
            with torch.no_grad():
                passes.flat.values.add_(0.0 if last else 0.5)
            passes.clear()
        found.append(passes.flat.gradients.clone())
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_taken_gradients_are_put_back(dtype: Dtype) -> None:
    module = network()
    passes = explicit(module, dtype=dtype)
    passes(as_batch(*batch(6)), 1.0)
    before = [gradient.clone() for gradient in gradients(module)]
    kept = taken(passes)
    passes(as_batch(*batch(4, 3)), 1.0)
    passes.set_gradient(kept)
    for mine, expected in zip(gradients(module), before, strict=True):
        assert torch.equal(mine, expected)
    passes.clear()
    assert not taken(passes).count_nonzero(), "nothing was added since: the sum is zero"


@pytest.mark.parametrize("probability", [0.1, 0.2, 0.5, 0.9])
def test_dropout_drops_as_often_as_it_says(probability: float) -> None:
    """Four standard deviations of a binomial count, over all units and many draws."""
    passes = explicit(network(dropout=probability, hidden=(64, 32)))
    torch.manual_seed(5)
    kept, count = 0, 0
    for _ in range(100):
        passes(as_batch(*batch(16)), 1.0)
        for keep in drawn(passes, 16):
            kept, count = kept + int(keep.sum()), count + keep.numel()
    expected = 1 - probability
    sigma = (probability * expected / count) ** 0.5
    assert abs(kept / count - expected) < 4 * sigma


def test_masks_differ_between_layers_rows_columns_and_steps() -> None:
    passes = explicit(network(dropout=0.5, hidden=(64, 64)))
    torch.manual_seed(6)
    seen = []
    for _ in range(2):
        passes(as_batch(*batch(64)), 1.0)
        seen += [keep.clone() for keep in drawn(passes, 64)]
    assert len(seen) == 4
    for index, mask in enumerate(seen):
        for other in seen[:index]:
            assert 0.45 < float((mask == other).float().mean()) < 0.55
        assert len({tuple(row) for row in mask.tolist()}) == 64
        assert len({tuple(column) for column in mask.t().tolist()}) == 64


def test_the_same_generator_state_gives_the_same_bits() -> None:
    """Law: what it draws comes from torch's generator, which checkpoints restore."""
    found = []
    for _ in range(2):
        module = network(dropout=0.3)
        passes = explicit(module)
        torch.manual_seed(9)
        passes(as_batch(*batch(6)), 1.0)
        found.append([gradient.clone() for gradient in gradients(module)])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))


def hooked() -> nn.Module:
    module = network()
    module.register_forward_hook(lambda *_: None)
    return module


def frozen() -> nn.Module:
    module = network()
    next(module.parameters()).requires_grad_(False)
    return module


def shared() -> nn.Module:
    first = nn.Linear(12, 12)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), first)


def of_another_kind() -> nn.Module:
    class Half(torch.Tensor):
        """A weight that computes otherwise, as quantised ones do."""

    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    module[0].weight = nn.Parameter(module[0].weight.detach().as_subclass(Half))
    return module


class Subclass(MLP):
    """Could override anything."""


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: MLP((1, 3, 4), 5, batch_norm=True),
    "a hook": hooked,
    "a frozen weight": frozen,
    "a shared layer": shared,
    "a subclass": lambda: Subclass((1, 3, 4), 5),
    "a weight of its own kind": of_another_kind,
    "double precision": lambda: network().double(),
    "another activation": lambda: nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 2)),
    "no activation": lambda: nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)),
    "no bias": lambda: nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2)),
    "activated logits": lambda: nn.Sequential(nn.Linear(2, 3), nn.ReLU()),
    "dropped inputs": lambda: nn.Sequential(nn.Dropout(0.1), nn.Linear(2, 3)),
    "dropped logits": lambda: nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.1)),
    "everything dropped": lambda: nn.Sequential(
        nn.Linear(2, 3), nn.ReLU(), nn.Dropout(1.0), nn.Linear(3, 2)
    ),
    "no layers": lambda: nn.Sequential(),
    "a convolution": lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(12, 5)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_network_that_is_not_plainly_layers_is_left_to_autograd(what: str) -> None:
    assert describe(REFUSED[what]()) is None


def test_what_is_put_into_all_modules_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: a hook on every module, or another `forward` in a class of torch's, is not passed by."""
    assert describe(network()) is not None
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert describe(network()) is None
    handle.remove()
    monkeypatch.setattr(nn.Linear, "forward", lambda self, inputs: inputs)
    assert describe(network()) is None


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda: network(dropout=0.25),
            [(12, 9, True, 0.25), (9, 7, True, 0.25), (7, 5, False, 0)],
        ),
        (lambda: network(hidden=()), [(12, 5, False, 0)]),
        (lambda: nn.Linear(12, 5), [(12, 5, False, 0)]),
        (
            lambda: nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 5))),
            [(12, 4, True, 0), (4, 5, False, 0)],
        ),
    ],
)
def test_plain_layers_are_recognised(
    make: Callable[[], nn.Module], expected: list[tuple[int, int, bool, float]]
) -> None:
    """Law: each linear layer in its order, and whether ReLU and how much dropout follow it."""
    shapes = describe(make())
    assert shapes is not None
    found = [
        (s.linear.in_features, s.linear.out_features, s.relu, s.dropped / LEVELS) for s in shapes
    ]
    assert found == expected
