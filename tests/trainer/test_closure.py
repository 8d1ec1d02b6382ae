"""LBFGS: the loss of a global batch is a function of the weights, the same on every evaluation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from configs.errors import InputError
from tests.support.rig import Rig, assert_close, assert_same_bits, make
from trainer.closure import Closure
from trainer.objective.meter import Meter
from trainer.ranks.rng import capture_rng
from trainer.ranks.runtime import Runtime

pytestmark = pytest.mark.usefixtures("one_thread")

ALONE = Runtime(launcher="python")
SEARCH: dict[str, Any] = {"max_iter": 5, "line_search_fn": "strong_wolfe"}
NOISY: dict[str, Any] = {"dropout": 0.4, "batch_norm": True, "micro": 4}


def lbfgs(**keys: Any) -> Rig:
    return make(**{"optimizer": "lbfgs", "lr": 0.5, "kwargs": SEARCH, **keys})


def closure_of(rig: Rig) -> Closure:
    global_batch = rig.plan.global_batch(rig.progress.global_batches)
    batches = rig.loader.stream(rig.progress.global_batches)
    return Closure(rig.step, global_batch, batches, rig.module, ALONE)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("micro", [None, 3])
def test_steps_are_those_of_a_plain_loop_over_whole_batches(
    micro: int | None, clip: float | None
) -> None:
    """Three global batches, the last one short, each with its line searches.

    Without them where gradients are clipped: rounding would lead the two to other weights.
    """
    kwargs = SEARCH if clip is None else {"max_iter": 2}
    rig = lbfgs(micro=micro, clip=clip, kwargs=kwargs)
    module = copy.deepcopy(rig.module)
    plain = torch.optim.LBFGS(module.parameters(), lr=0.5, **kwargs)
    for index in range(3):
        inputs, targets = rig.batch(index)
        losses = []

        def closure(inputs: Tensor = inputs, targets: Tensor = targets, seen: Any = losses) -> Any:
            plain.zero_grad()
            loss = F.cross_entropy(module(rig.normalize(inputs)), targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip or 1e9)
            seen.append(loss.item())
            return loss

        plain.param_groups[0]["lr"] = rig.rate(index)
        plain.step(closure)
        rig.drive()
        assert rig.meter.collect(ALONE).loss == pytest.approx(losses[0], rel=1e-5)
        assert len(losses) >= 2
        mine, theirs = (
            next(iter(one.state.values()))["func_evals"] for one in (rig.optimizer, plain)
        )
        assert mine == theirs
    assert_close(
        list(rig.weights().values()), list(module.state_dict().values()), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("reduction", ["fast", "exact"])
def test_an_evaluation_at_the_same_weights_is_the_same_to_the_last_bit(reduction: Any) -> None:
    """With dropout and batch norm, under either reduction."""
    rig = lbfgs(reduction=reduction, **NOISY)
    rig.drive()
    closure = closure_of(rig)
    first = closure(), [p.clone() for p in rig.gradient()], rig.weights()
    torch.rand(7)
    again = closure(), rig.gradient(), rig.weights()
    assert_same_bits(list(again[0:1]), list(first[0:1]))
    assert_same_bits(again[1], first[1])
    assert_same_bits(again[2], first[2])


def test_a_step_moves_generators_and_statistics_by_one_evaluation() -> None:
    rig, once = lbfgs(**NOISY), lbfgs(**NOISY)
    state = torch.get_rng_state()
    rig.drive()
    assert next(iter(rig.optimizer.state.values()))["func_evals"] > 2
    after = capture_rng(torch.device("cpu"))
    torch.set_rng_state(state)
    once.step.differentiate(once.plan.global_batch(0), once.loader.stream(0), Meter())
    assert_same_bits(after["torch"], torch.get_rng_state())
    counts = {n: int(b) for n, b in rig.module.named_buffers() if n.endswith("tracked")}
    assert counts
    assert counts == {n: int(b) for n, b in once.module.named_buffers() if n.endswith("tracked")}


def test_metrics_and_gradient_norm_are_those_before_the_step() -> None:
    rig, still = lbfgs(clip=0.1), make(clip=0.1, backward="autograd")
    still.drive()
    expected = still.meter.collect(ALONE), float(still.step.gradient_norm())
    rig.drive()
    assert rig.meter.collect(ALONE) == expected[0]
    assert float(rig.step.gradient_norm()) == pytest.approx(expected[1], rel=1e-5)


def test_the_loss_falls_further_than_by_one_gradient_step() -> None:
    losses = {}
    for name, kwargs in (("lbfgs", SEARCH), ("sgd", None)):
        rig = make(num_samples=16, optimizer=name, lr=0.5, kwargs=kwargs)
        rig.drive(4)
        rig.meter.collect(ALONE)
        rig.drive()
        losses[name] = rig.meter.collect(ALONE).loss
    assert losses["lbfgs"] < 0.9 * losses["sgd"]


def test_fp16_is_refused() -> None:
    with pytest.raises(InputError, match=r"precision.dtype.*fp32 or bf16.*lbfgs"):
        lbfgs(dtype="fp16")


def test_passes_that_are_written_out_leave_lbfgs_alone() -> None:
    with pytest.raises(InputError, match=r"compile.backward.*sgd, adam or adamw"):
        lbfgs(backward="explicit")
    assert all(p.is_contiguous() for p in lbfgs().module.parameters())
