"""Parameters without a gradient in some steps: no step for them, on one rank and on two."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from configs.schema_training import PrecisionConfig
from data.collate import stack
from data.normalize import Normalize
from data.samples import Example
from tests.support import changing_networks, odd_networks
from tests.support.odd_runs import CHANGING, arguments, run
from tests.support.processes import launch, train
from tests.support.runs import assert_same_bits, latest_weights
from trainer.backward.autograd import LossModule
from trainer.checkpoints.checkpoint import load_checkpoint
from trainer.engines.unused import reason_to_ask
from trainer.objective.tasks import classification
from trainer.optim.fused import DirectKernel
from trainer.ranks.precision import build_precision

SGD = ("--optimizer.name=sgd", "--optimizer.weight_decay=0.1", "--train.epochs=2")


@pytest.mark.parametrize("dampening", [0.0, 0.5])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_late_gradient_takes_the_step_that_torch_would(
    kind: type[torch.optim.Optimizer], dampening: float
) -> None:
    """Law: its momentum begins when its gradient does; torch's fused SGD would fail."""
    options = {"momentum": 0.9, "dampening": dampening} if kind is torch.optim.SGD else {}

    def steps(fused: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        ours = [nn.Parameter(torch.randn(4)) for _ in range(2)]
        optimizer = kind(ours, lr=0.1, weight_decay=0.1, fused=fused, **options)  # type: ignore[call-arg]
        kernel = DirectKernel(optimizer) if fused else optimizer
        for number in range(6):
            ours[0].grad = torch.randn(4)
            ours[1].grad = None if number in (0, 1, 4) else torch.randn(4)
            kernel.step()
        assert optimizer.param_groups[0]["fused"] is fused
        return [parameter.detach() for parameter in ours]

    for mine, theirs in zip(steps(True), steps(False), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (changing_networks.LayerDrop("python"), "draws from Python's or NumPy's"),
        (changing_networks.LayerDrop("numpy"), "draws from Python's or NumPy's"),
        (changing_networks.LayerDrop("torch"), "reads values of tensors on the host"),
        (changing_networks.EarlyBranch(), "reads values of tensors on the host"),
        (changing_networks.Counted(), "changes attributes of the model"),
        (changing_networks.Fussy(), "reads values of tensors on the host"),
        (changing_networks.LateBranch(), r"2 had none in a trial \(branch\.weight, branch\.bias"),
        (odd_networks.stacked(), "^$"),
        (odd_networks.InPlace(), "^$"),
        (odd_networks.FrozenParts(), "^2 had none"),
    ],
)
def test_ranks_ask_each_other_unless_passes_are_shown_to_be_alike(
    model: nn.Module, reason: str
) -> None:
    """Law: a graph is taken for static where a trial shows it, not where it happened to look so."""
    torch.manual_seed(0)
    data = odd_networks.toy()
    loss = LossModule(
        model,
        normalize=Normalize(data, torch.device("cpu")),
        precision=build_precision(PrecisionConfig(), torch.device("cpu")),
        task=classification(),
    )
    example = Example(data.train[0], stack)
    assert re.search(reason, reason_to_ask(loss, example, torch.device("cpu")))


@pytest.mark.process
def test_a_layer_that_is_dropped_on_some_ranks_is_trained_on_all(tmp_path: Path) -> None:
    """Law: ranks draw numbers of their own, and end with the same weights."""
    model, more = f"{CHANGING}:LayerDrop", ("--parallel.drift_every_steps=1", "--train.epochs=9")
    train(*arguments(tmp_path, model, *more), ranks=2)


@pytest.mark.parametrize("more", [(), ("--parallel.reduction=exact", "--parallel.shards=2")])
def test_no_gradient_is_no_step(more: tuple[str, ...], tmp_path: Path) -> None:
    """Law: neither weight decay nor a momentum moves what got no gradient, nor its average."""
    options = (*SGD, "--train.ema_decay=0.9", "--checkpoint.every_steps=1", "--checkpoint.keep=9")
    folder = run(tmp_path, f"{CHANGING}:LateBranch", *options, *more)
    names = [folder / "checkpoints" / f"step_{step:08d}" for step in range(1, 7)]
    states = [load_checkpoint(path) for path in names]
    branches = [weights["branch.weight"] for weights, _ in states]
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(branches)]
    assert moved == [False, False, True, True, True]
    assert torch.equal(states[2][1]["ema"]["branch.weight"], branches[2])


@pytest.mark.process
@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("LateBranch", ()),
        ("LateBranch", ("--parallel.reduction=exact", "--parallel.shards=2")),
        pytest.param("LateBranch", ("--parallel.strategy=fsdp",), marks=pytest.mark.slow),
        pytest.param(
            "EarlyBranch", ("--parallel.find_unused_parameters=true",), marks=pytest.mark.slow
        ),
    ],
)
def test_two_ranks_leave_alone_what_one_rank_does(
    model: str, more: tuple[str, ...], tmp_path: Path
) -> None:
    options = (*SGD, *more)
    one = run(tmp_path / "one", f"{CHANGING}:{model}", *options, "--parallel.threads=1")
    train(*arguments(tmp_path / "two", f"{CHANGING}:{model}", *options), ranks=2)
    ours, theirs = latest_weights(one), latest_weights(tmp_path / "two" / "run")
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-6)
    if "--parallel.reduction=exact" in more:
        assert_same_bits(one, tmp_path / "two" / "run")


@pytest.mark.process
@pytest.mark.parametrize("more", [(), ("--parallel.reduction=exact", "--parallel.shards=2")])
def test_what_the_trial_could_not_see_is_never_averaged_wrongly(
    more: tuple[str, ...], tmp_path: Path
) -> None:
    """Law: a branch that is left out later stops the run, with the key that lets it go on."""
    options = arguments(tmp_path, f"{CHANGING}:HiddenBranch", *SGD, *more)
    finished = launch("launch/train.py", *options, ranks=2)
    assert finished.status == 1
    assert "parameter branch.weight got no gradient in this step" in finished.output
    assert "--parallel.find_unused_parameters true" in finished.output
