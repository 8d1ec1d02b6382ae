"""The moving average follows its formula and belongs to nobody else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from data.loading.epoch_schedule import EpochSchedule
from trainer.optim.average import EMA, SWA


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def drift(model: nn.Module, seed: int) -> None:
    """Move weights and buffers as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
        model.train()(torch.randn(5, 3, generator=generator))


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_the_average_follows_the_formula_with_its_warm_up(decay: float) -> None:
    model = network()
    ema = EMA(model, decay)
    expected = [p.detach().double().numpy() for p in model.parameters()]
    for n in range(1, 31):
        drift(model, n)
        ema.update(model, n)
        d = min(decay, (1 + n) / (10 + n))
        expected = [
            d * old + (1 - d) * p.detach().double().numpy()
            for old, p in zip(expected, model.parameters(), strict=True)
        ]
        for mine, theirs in zip(ema.module.parameters(), expected, strict=True):
            np.testing.assert_allclose(mine.detach().numpy(), theirs, rtol=1e-4, atol=1e-5)


def test_buffers_are_copied_as_they_are() -> None:
    model = network()
    ema = EMA(model, 0.9)
    for n in range(1, 4):
        drift(model, n)
        ema.update(model, n)
    buffers = dict(model.named_buffers())
    assert int(buffers["1.num_batches_tracked"]) == 3
    for name, buffer in ema.module.named_buffers():
        assert torch.equal(buffer, buffers[name])


def test_a_new_average_is_the_model_and_shares_no_memory_with_it() -> None:
    model = network()
    ema = EMA(model, 0.9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drift(model, 1)
    for name, value in ema.module.state_dict().items():
        assert torch.equal(value, before[name])
    ema.update(model, 1)
    moved = {name: value.clone() for name, value in ema.module.state_dict().items()}
    drift(model, 2)
    for name, value in ema.module.state_dict().items():
        assert torch.equal(value, moved[name])


def test_the_average_is_not_trained_and_not_random() -> None:
    model = network().train()
    ema = EMA(model, 0.9)
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in ema.module.modules())
    assert model.training
    inputs = torch.ones(2, 3)
    assert torch.equal(ema.module(inputs), ema.module(inputs))


def test_an_update_leaves_the_model_and_its_gradients_alone() -> None:
    model = network()
    ema = EMA(model, 0.9)
    model(torch.randn(5, 3)).sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    ema.update(model, 1)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert len(gradients) == len(list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)


def test_swa_is_the_mean_of_the_weights_at_the_ends_of_epochs() -> None:
    """Law: after epoch E the mean of epochs first..E; before, the latest weights."""
    model, per_epoch, first = network(), 4, 3
    swa = SWA(model, first, EpochSchedule(num_samples=per_epoch, batch_sizes=((0, 1),)))
    ends: list[dict[str, torch.Tensor]] = []
    for global_batch in range(1, 6 * per_epoch + 1):
        drift(model, global_batch)
        swa.update(model, global_batch, global_batch)
        state = {name: value.clone().double() for name, value in model.state_dict().items()}
        epoch, rest = divmod(global_batch, per_epoch)
        if rest == 0 and epoch >= first:
            ends.append(state)
        expected = state
        if ends:
            expected = {name: torch.stack([e[name] for e in ends]).mean(0) for name in state}
        for name, value in swa.module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-5)
