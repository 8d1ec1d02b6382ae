"""Parameter groups: what decays, what learns slower, and groups of the user's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo  # the first optimizer imports it, and it sets an environment variable
from torch import nn

from configs.errors import InputError
from configs.schema_model import ModelConfig
from configs.schema_training import OptimizerConfig
from trainer.networks.mlp import MLP
from trainer.networks.models import build_model
from trainer.optim.optimizers import build_optimizer, product_in_single
from trainer.optim.parameter_groups import group_parameters


def mlp() -> MLP:
    return MLP((1, 3, 2), 5, hidden=(8, 6), batch_norm=True)


def by_name(model: nn.Module, **keys: Any) -> dict[str, tuple[float, float | None]]:
    """Factor of the learning rate and weight decay of each parameter, None for the config's."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = group_parameters(model, OptimizerConfig(**keys))
    found = {}
    for group in groups:
        assert isinstance(group, dict)
        for parameter in group["params"]:
            assert names[parameter] not in found
            found[names[parameter]] = (group["lr_scale"], group.get("weight_decay"))
    return found


def test_one_group_is_a_plain_list_without_what_is_frozen() -> None:
    model = mlp()
    first, *rest = model.parameters()
    first.requires_grad_(False)
    for keys in ({}, {"decay_norms_and_biases": False}, {"layer_decay": 1.0}):
        groups = group_parameters(model, OptimizerConfig(**keys))
        assert len(groups) == len(rest)
        assert all(mine is theirs for mine, theirs in zip(groups, rest, strict=True))


def test_biases_and_norms_do_not_decay_if_asked() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm((2, 2)), nn.BatchNorm1d(4), nn.Linear(4, 2))
    found = by_name(model, weight_decay=0.1, decay_norms_and_biases=False)
    assert {name for name, (_, decay) in found.items() if decay is None} == {"0.weight", "3.weight"}
    assert {decay for _, decay in found.values()} == {None, 0.0}


def test_only_what_decays_shrinks() -> None:
    model = mlp()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = OptimizerConfig(
        name="adamw", lr=0.1, weight_decay=0.5, decay_norms_and_biases=False, layer_decay=0.5
    )
    optimizer = build_optimizer(config, group_parameters(model, config), torch.device("cpu"))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if parameter.dim() > 1 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_layers_learn_slower_the_further_they_are_from_the_output() -> None:
    """A norm belongs to the layer before it."""
    found = by_name(mlp(), layer_decay=0.5)
    scales = {name: scale for name, (scale, _) in found.items()}
    assert [scales[f"layers.{i}.weight"] for i in (1, 2, 4, 5, 7)] == [0.25, 0.25, 0.5, 0.5, 1.0]
    assert all(scales[name] == scales[name.replace("bias", "weight")] for name in scales)


def test_blocks_of_a_model_are_its_layers() -> None:
    """Stem, two blocks, head."""
    model = build_model(
        ModelConfig(name="vit", kwargs={"depth": 2, "width": 16, "heads": 2}),
        input_shape=(1, 8, 8),
        num_classes=3,
        seed=0,
    )
    found = by_name(model, layer_decay=0.5)
    depths: dict[str, set[float]] = {}
    for name, (scale, _) in found.items():
        part = name if not name.startswith("encoder.") else ".".join(name.split(".")[:2])
        depths.setdefault(part, set()).add(scale)
    assert (depths["encoder.0"], depths["encoder.1"]) == ({0.25}, {0.5})
    stem = {scale for name, (scale, _) in found.items() if "patch" in name or "position" in name}
    assert stem == {0.125}
    assert {scale for name, (scale, _) in found.items() if name.startswith("head")} == {1.0}


class Bare(nn.Module):
    """No container, no `blocks()`: modules in the order of registration."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.second = nn.Linear(2, 2)


def test_modules_are_the_layers_of_a_model_without_blocks() -> None:
    scales = {name: scale for name, (scale, _) in by_name(Bare(), layer_decay=0.5).items()}
    assert scales["first.weight"] == scales["norm.weight"] == 0.5
    assert scales["second.bias"] == 1.0


def good(model: Bare) -> list[dict[str, Any]]:
    return [
        {"params": model.first.parameters(), "lr": 0.01},
        {"params": [*model.norm.parameters()], "weight_decay": 0.0},
        {"params": model.second.parameters(), "lr_scale": 3.0, "momentum": 0.5},
    ]


def missing(model: Bare) -> list[dict[str, Any]]:
    return good(model)[:2]


def twice(model: Bare) -> list[dict[str, Any]]:
    return [*good(model), {"params": [model.norm.bias]}]


def others(model: Bare) -> list[nn.Parameter]:
    return list(model.parameters())


def test_groups_of_the_users_own_keep_what_they_say() -> None:
    config = OptimizerConfig(name="sgd", lr=0.1, weight_decay=0.2, groups=f"{__name__}:good")
    groups = group_parameters(Bare(), config)
    first, norm, second = build_optimizer(config, groups, torch.device("cpu")).param_groups
    assert first["lr_scale"] == pytest.approx(0.1)
    assert (norm["lr_scale"], norm["weight_decay"]) == (1.0, 0.0)
    assert (second["lr_scale"], second["momentum"], second["weight_decay"]) == (3.0, 0.5, 0.2)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "second.weight, second.bias not in exactly one group"),
        ("twice", "norm.bias not in exactly one group"),
        ("others", "a function model -> list of groups"),
    ],
)
def test_groups_that_leave_something_out_are_refused(name: str, said: str) -> None:
    config = OptimizerConfig(groups=f"{__name__}:{name}")
    with pytest.raises(InputError, match=f"optimizer.groups.*{said}"):
        group_parameters(Bare(), config)


def test_lbfgs_is_refused_with_groups() -> None:
    config = OptimizerConfig(name="lbfgs", layer_decay=0.5)
    with pytest.raises(InputError, match="doesn't support per-parameter options"):
        build_optimizer(config, group_parameters(Bare(), config), torch.device("cpu"))


@pytest.mark.parametrize("rate", [1e-3, 3e-4, 0.1])
@pytest.mark.parametrize("scale", [1.0, 0.3, 1 / 3, 0.75**5])
def test_a_factor_of_the_rate_is_rounded_on_the_host_as_on_a_gpu(rate: float, scale: float) -> None:
    """Law: a rate that the device multiplies and one that the host does have the same bits."""
    assert product_in_single(rate, scale) == float(torch.tensor(rate) * scale)
