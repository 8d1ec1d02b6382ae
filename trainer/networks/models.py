"""The reference networks, and how a config becomes one.

A network is a `torch.nn.Module` that turns `(B, *input_shape)` floats into outputs that suit the
task. One that is deep may say which of its modules are sharded, checkpointed or wrapped one by one:

    def blocks(self) -> list[nn.Module]

returns them in the order in which they are applied. They are modules of the network, none lies
within another, and the network calls each by `block(...)`, not by its `forward`. `model_blocks`
reads that, and the attribute `blocks` that the networks of many libraries have.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from configs.errors import InputError
from configs.imports import call_with
from configs.registry import resolve
from configs.schema_training import ModelConfig
from trainer.networks import from_timm
from trainer.networks.convnet import ConvNet
from trainer.networks.dropout import Dropout
from trainer.networks.module_state import evaluating
from trainer.networks.resnet import resnet18, resnet50
from trainer.networks.resnet9 import ResNet9
from trainer.networks.vit import ViT
from trainer.objective.task import Task
from trainer.ranks.rng import seed_stream


class MLP(nn.Module):
    """Fully connected layers with ReLU and dropout between them.

    Args:
        input_shape: Shape of one sample; it is flattened.
        num_classes: Number of logits.
        hidden: Width of each hidden layer.
        dropout: Probability of dropping an activation, 0 <= dropout < 1.
        batch_norm: Batch normalisation before each ReLU.

    Shapes:
        `(B, *input_shape)` float -> `(B, num_classes)` logits.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        hidden: Sequence[int] = (256, 128),
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if not all(isinstance(width, int) and width >= 1 for width in hidden):
            raise InputError(
                "model.kwargs.hidden", given=hidden, expected="a list of widths, each 1 or more"
            )
        if not 0 <= dropout < 1:
            raise InputError("model.kwargs.dropout", given=dropout, expected="0 <= dropout < 1")
        widths = [math.prod(input_shape), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in itertools.pairwise(widths):
            layers.append(nn.Linear(before, after))
            if batch_norm:
                layers.append(nn.BatchNorm1d(after))
            layers.append(nn.ReLU())
            if dropout:
                layers.append(Dropout(dropout))
        layers.append(nn.Linear(widths[-1], num_classes))
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.layers(inputs)
        return logits


MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "convnet": ConvNet,
    "resnet9": ResNet9,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vit": ViT,
}


def build_model(
    config: ModelConfig,
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    seed: int,
    weights_follow: bool = False,
) -> nn.Module:
    """Build the model with initial weights that depend on the seed alone, on every rank alike.

    A factory named by import path is called with `input_shape` and `num_classes` if it accepts
    them, and with `model.kwargs`. It must return a module whose output is `(B, num_classes)`
    logits.

    Args:
        config: Which model.
        input_shape: Shape of one sample.
        num_classes: Number of logits.
        seed: Of the run.
        weights_follow: The caller loads all weights, so timm need not fetch pretrained ones.

    Raises:
        InputError: If the factory does not exist, refuses its arguments or makes no module.
    """
    factory, kwargs = _find(config.name), dict(config.kwargs)
    if weights_follow and config.name.startswith(from_timm.PREFIX):
        kwargs = {key: kwargs[key] for key in kwargs if key not in from_timm.WEIGHTS}
    seed_stream(seed, "weights")
    facts = {"input_shape": input_shape, "num_classes": num_classes}
    try:
        model = call_with("model.kwargs", factory, kwargs, facts)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError) or factory not in MODELS.values():
            raise
        raise InputError("model.kwargs", given=config.kwargs, expected=f"({error})") from None
    if not isinstance(model, nn.Module):
        raise InputError(
            "model.name", given=config.name, expected="a callable that returns a torch.nn.Module"
        )
    return model


def _find(name: str) -> Callable[..., nn.Module]:
    if name.startswith(from_timm.PREFIX):
        return functools.partial(from_timm.timm_model, name.removeprefix(from_timm.PREFIX))
    return resolve("model.name", name, MODELS)


def model_blocks(model: nn.Module) -> list[nn.Module]:
    """The modules of a network to wrap one by one, in order; none if it does not say.

    That is what its method `blocks()` returns, or the modules in its attribute `blocks`, be it a
    list, a `ModuleList` or a `Sequential`; nested ones are taken apart.

    Raises:
        InputError: If these are no modules of the network.
    """
    declared: Any = getattr(model, "blocks", None)
    if callable(declared) and not isinstance(declared, nn.Module):
        declared = declared()
    blocks = list(_flat(declared))
    known = set(model.modules())
    strangers = [block for block in blocks if block not in known]
    if strangers or len(set(blocks)) < len(blocks):
        raise InputError(
            f"blocks of {type(model).__name__}",
            given=[type(block).__name__ for block in strangers or blocks],
            expected="a list of modules of the network, each once",
        )
    return blocks


def _flat(declared: Any) -> Iterator[nn.Module]:
    if isinstance(declared, nn.ModuleList | nn.Sequential | list | tuple):
        for part in declared:
            yield from _flat(part) if isinstance(part, nn.ModuleList | nn.Sequential) else (part,)
    elif declared is not None:
        yield declared


def check_outputs(model: nn.Module, inputs: Tensor, target: Tensor, task: Task) -> None:
    """Try one sample, so that a model that does not suit the task is refused before it trains.

    Raises:
        InputError: With the shape of the outputs.
    """
    with evaluating(model), torch.no_grad():
        outputs = model(inputs)
    given = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    try:
        task.measure(outputs, target.to(inputs.device))
    except (RuntimeError, IndexError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"outputs of the model for task.name={task.name} ({reason})",
            given=f"{given} for inputs {tuple(inputs.shape)}",
            expected=f"a tensor that suits targets {tuple(target.shape)}: {task.outputs}",
        ) from None
