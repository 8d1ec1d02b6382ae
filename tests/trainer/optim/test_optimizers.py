"""Each optimizer takes the step its paper says."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo  # the first optimizer imports it, and it sets an environment variable
from numpy.typing import NDArray
from torch import nn

from configs.errors import InputError
from configs.schema_execution import ParallelConfig
from configs.schema_training import OptimizerConfig
from trainer.optim.muon import MuonWithAdamW
from trainer.optim.optimizers import build_optimizer, check_gradients, needs_closure, one_kernel

CPU = torch.device("cpu")
Vector = NDArray[np.float64]
CLASSES = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def textbook_sgd(config: OptimizerConfig, w: Vector, gradients: list[Vector]) -> Vector:
    velocity = np.zeros_like(w)
    for g in gradients:
        g = g + config.weight_decay * w
        velocity = config.momentum * velocity + g
        w = w - config.lr * (g + config.momentum * velocity if config.nesterov else velocity)
    return w


def textbook_adam(config: OptimizerConfig, w: Vector, gradients: list[Vector]) -> Vector:
    decoupled = config.name == "adamw"
    (beta1, beta2), m, v = config.betas, np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        if decoupled:
            w = w - config.lr * config.weight_decay * w
        else:
            g = g + config.weight_decay * w
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        w = w - config.lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + config.eps)
    return w


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(
    ("textbook", "config"),
    [
        (textbook_sgd, OptimizerConfig(name="sgd", lr=0.1, momentum=0.0)),
        (textbook_sgd, OptimizerConfig(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.3)),
        (textbook_sgd, OptimizerConfig(name="sgd", lr=0.1, momentum=0.9)),
        (textbook_sgd, OptimizerConfig(name="sgd", lr=0.1, momentum=0.8, weight_decay=0.3)),
        (textbook_sgd, OptimizerConfig(name="sgd", lr=0.1, momentum=0.9, nesterov=True)),
        (textbook_adam, OptimizerConfig(name="adam", lr=0.01)),
        (textbook_adam, OptimizerConfig(name="adam", lr=0.01, betas=(0.5, 0.9), eps=1e-2)),
        (textbook_adam, OptimizerConfig(name="adam", lr=0.01, weight_decay=0.3)),
        (textbook_adam, OptimizerConfig(name="adamw", lr=0.01)),
        (textbook_adam, OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.3)),
    ],
    ids=[
        "sgd",
        "sgd-decay",
        "sgd-momentum",
        "sgd-momentum-decay",
        "sgd-nesterov",
        "adam",
        "adam-betas-eps",
        "adam-decay",
        "adamw",
        "adamw-decay",
    ],
)
def test_a_step_is_the_textbook_formula(
    textbook: Callable[[OptimizerConfig, Vector, list[Vector]], Vector],
    config: OptimizerConfig,
    steps: int,
) -> None:
    random = np.random.default_rng(0)
    start = random.normal(size=11)
    gradients = [random.normal(size=11) for _ in range(steps)]
    parameter = nn.Parameter(torch.tensor(start, dtype=torch.float32))
    optimizer = build_optimizer(config, [parameter], CPU)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    expected = textbook(config, start, gradients)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", list(CLASSES))
def test_each_name_builds_its_class_with_the_config_in_it(name: str) -> None:
    config = OptimizerConfig(name=name, lr=0.25, weight_decay=0.5, betas=(0.1, 0.2), eps=0.125)
    optimizer = build_optimizer(config, [nn.Parameter(torch.zeros(2))], CPU)
    assert type(optimizer) is CLASSES[name]
    (group,) = optimizer.param_groups
    expected: dict[str, Any] = {"lr": 0.25, "weight_decay": 0.5}
    if name == "sgd":
        expected |= {"momentum": config.momentum, "nesterov": config.nesterov}
    else:
        expected |= {"betas": (0.1, 0.2), "eps": 0.125}
    assert {key: group[key] for key in expected} == expected


@pytest.mark.parametrize(("device", "fused"), [("cpu", True), ("cuda", True), ("meta", False)])
@pytest.mark.parametrize("name", list(CLASSES))
def test_the_fused_kernel_is_used_where_there_is_one(name: str, device: str, fused: bool) -> None:
    parameters = [nn.Parameter(torch.zeros(2))]
    optimizer = build_optimizer(OptimizerConfig(name=name), parameters, torch.device(device))
    assert bool(optimizer.param_groups[0]["fused"]) is fused


def test_frozen_parameters_are_left_out() -> None:
    frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
    trained = nn.Parameter(torch.zeros(3))
    optimizer = build_optimizer(OptimizerConfig(), [frozen, trained], CPU)
    assert [parameter.numel() for parameter in optimizer.param_groups[0]["params"]] == [3]


@pytest.mark.parametrize(("name", "closest"), [("adm", "adam"), ("adam_w", "adamw")])
def test_a_misspelt_optimizer_is_answered_with_the_closest_one(name: str, closest: str) -> None:
    with pytest.raises(InputError, match=f"Did you mean '{closest}'"):
        build_optimizer(OptimizerConfig(name=name), [nn.Parameter(torch.zeros(1))], CPU)


def test_an_optimizer_may_be_named_by_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "optim_user_module.py").write_text(
        "import torch\n\n\ndef make(parameters, config, fused):\n"
        "    return torch.optim.Adagrad(parameters, lr=config.lr)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "optim_user_module", None)
    monkeypatch.delitem(sys.modules, "optim_user_module")
    config = OptimizerConfig(name="optim_user_module:make", lr=0.5)
    optimizer = build_optimizer(config, [nn.Parameter(torch.zeros(1))], CPU)
    assert type(optimizer) is torch.optim.Adagrad
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(CLASSES))
def test_a_step_on_the_gpu_is_the_step_on_the_cpu(gpu: torch.device, name: str) -> None:
    found = []
    for device in (CPU, gpu):
        parameter = nn.Parameter(torch.linspace(-1, 1, 9, device=device))
        optimizer = build_optimizer(OptimizerConfig(name=name), [parameter], device)
        for scale in (1.0, -0.5):
            parameter.grad = torch.linspace(2, 3, 9, device=device) * scale
            optimizer.step()
        found.append(parameter.detach().cpu())
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


EVERY = [
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and name not in ("Optimizer", "SparseAdam")
]


@pytest.mark.parametrize("name", EVERY)
def test_every_class_of_torch_is_named_in_any_case_and_takes_its_learning_rate(name: str) -> None:
    for spelled in (name, name.lower(), name.upper()):
        matrices = [nn.Parameter(torch.ones(2, 2))]
        optimizer = build_optimizer(OptimizerConfig(name=spelled, lr=0.125), matrices, CPU)
        kind = getattr(torch.optim, name)
        assert isinstance(optimizer, MuonWithAdamW if name == "Muon" else kind)
        assert optimizer.param_groups[0]["lr"] == 0.125


def test_arguments_of_a_class_reach_it() -> None:
    kwargs = {"alpha": 0.5, "centered": True}
    config = OptimizerConfig(name="rmsprop", weight_decay=0.25, kwargs=kwargs)
    (group,) = build_optimizer(config, [nn.Parameter(torch.ones(2))], CPU).param_groups
    assert (group["alpha"], group["centered"], group["weight_decay"]) == (0.5, True, 0.25)
    config = OptimizerConfig(name="adam", kwargs={"foreach": True, "amsgrad": True})
    (group,) = build_optimizer(config, [nn.Parameter(torch.ones(2))], CPU).param_groups
    assert (group["foreach"], group["amsgrad"], group["fused"]) == (True, True, None)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"name": "rmspro"}, "Did you mean 'RMSprop'"),
        ({"name": "rmsprop", "kwargs": {"beta": 1}}, r"RMSprop\(params.*argument 'beta'"),
        ({"name": "rmsprop", "kwargs": {"alpha": -1.0}}, r"Invalid alpha value: -1.0"),
        ({"name": "sgd", "kwargs": {"momentum": "much"}}, r"optimizer.kwargs.*sgd\(params"),
        ({"name": "rprop", "weight_decay": 0.1}, r"optimizer.weight_decay.*0 with.*rprop"),
        ({"name": "torch.optim:lr_scheduler.LambdaLR"}, "subclass of torch.optim.Optimizer"),
        ({"name": "builtins:len"}, r"\(parameters, config, fused\)"),
    ],
)
def test_what_no_optimizer_takes_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        build_optimizer(OptimizerConfig(**keys), [nn.Parameter(torch.zeros(1))], CPU)


def test_sparse_adam_is_refused_for_dense_gradients() -> None:
    for sparse in (False, True):
        model = nn.Embedding(3, 2, sparse=sparse)
        optimizer = build_optimizer(OptimizerConfig(name="SparseAdam"), model.parameters(), CPU)
        if sparse:
            check_gradients(model, optimizer, ParallelConfig())
        else:
            with pytest.raises(InputError, match=r"torch.nn.Embedding\(sparse=True\)"):
                check_gradients(model, optimizer, ParallelConfig())


def test_powersgd_is_refused_where_the_loss_must_be_a_function() -> None:
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(OptimizerConfig(name="LBFGS"), model.parameters(), CPU)
    with pytest.raises(InputError, match=r"parallel.compression.*bf16 or fp16 with LBFGS"):
        check_gradients(model, optimizer, ParallelConfig(compression="powersgd"))


def test_muon_steps_matrices_and_adamw_the_rest() -> None:
    """Law: each part moves as if it were alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    alone = copy.deepcopy(model)
    config = OptimizerConfig(name="muon", lr=0.1, weight_decay=0.1, kwargs={"ns_steps": 4})
    optimizer = build_optimizer(config, model.parameters(), CPU)
    apart = [
        torch.optim.Muon(
            [p for p in alone.parameters() if p.dim() == 2],
            lr=0.1,
            weight_decay=0.1,
            ns_steps=4,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [p for p in alone.parameters() if p.dim() != 2], lr=0.1, weight_decay=0.1, fused=True
        ),
    ]
    for step in range(3):
        for one in (model, alone):
            one.zero_grad()
            one(torch.linspace(-1, step, 15).view(5, 3)).square().sum().backward()
        for part in (optimizer, *apart):
            part.step()
    for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_closure_is_needed_by_lbfgs_alone() -> None:
    """And by a user's class whose step cannot do without one."""

    class Own(torch.optim.SGD):
        def step(self, closure: Any) -> None:  # type: ignore[override]
            super().step(closure)

    parameters = [nn.Parameter(torch.ones(2, 2))]
    asked = {
        name
        for name in EVERY
        if needs_closure(build_optimizer(OptimizerConfig(name=name), parameters, CPU))
    }
    assert asked == {"LBFGS"}
    assert needs_closure(Own(parameters, lr=0.1))


@pytest.mark.parametrize(
    "keys",
    [
        {"kwargs": {"amsgrad": True}},
        {"layer_decay": 0.5},
        {"weight_decay": 0.1, "decay_norms_and_biases": False},
        {"groups": "package.module:groups"},
        {"name": "nadam"},
    ],
)
def test_one_kernel_steps_one_plain_group_only(keys: dict[str, Any]) -> None:
    assert one_kernel(OptimizerConfig(name="adam"))
    assert not one_kernel(OptimizerConfig(**{"name": "adam", **keys}))


class OtherName(torch.optim.SGD):
    """Its first argument is not called `params`, as in some libraries."""

    def __init__(self, weights: Any, lr: float) -> None:
        super().__init__(weights, lr=lr)


def test_an_optimizer_may_call_its_parameters_as_it_likes() -> None:
    config = OptimizerConfig(name=f"{__name__}:OtherName", lr=0.5)
    optimizer = build_optimizer(config, [torch.nn.Parameter(torch.ones(2))], torch.device("cpu"))
    assert isinstance(optimizer, OtherName)
    assert optimizer.param_groups[0]["lr"] == 0.5
