"""The networks that a config can name, and how a config becomes one."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from torch import nn

from configs.errors import InputError
from configs.imports import call_with, named, signature_of, takes_any
from configs.registry import resolve
from configs.schema_model import ModelConfig
from trainer.networks import from_timm
from trainer.networks.convnet import ConvNet
from trainer.networks.gpt import GPT
from trainer.networks.mlp import MLP
from trainer.networks.resnet import resnet18, resnet50
from trainer.networks.resnet9 import ResNet9
from trainer.networks.trained_parts import freeze
from trainer.networks.vit import ViT
from trainer.ranks.rng import seed_stream

log = logging.getLogger("convoy")

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "convnet": ConvNet,
    "resnet9": ResNet9,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vit": ViT,
    "gpt": GPT,
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

    A factory named by import path is called with `input_shape` and `num_classes` if it names them
    among its arguments, and with `model.kwargs`. It must return a module whose output is
    `(B, num_classes)` logits.

    Args:
        config: The name of the model and its arguments.
        input_shape: Shape of one sample.
        num_classes: Number of logits.
        seed: The seed of the run.
        weights_follow: The caller loads all weights, so timm need not fetch pretrained ones.

    Returns:
        The model on the CPU, in training mode but for the parts that its author set to eval mode,
        be it in a `train` of its own; one that came wholly in eval mode, as pretrained ones do, is
        in training mode. What `model.freeze` names is frozen.

    Raises:
        InputError: If the factory does not exist, refuses its arguments or makes no module.
    """
    factory, kwargs = _find(config.name), dict(config.kwargs)
    if weights_follow and config.name.startswith(from_timm.PREFIX):
        kwargs = {key: kwargs[key] for key in kwargs if key not in from_timm.WEIGHTS}
    seed_stream(seed, "weights")
    if line := _unnamed(config, factory, num_classes):
        log.info(line)
    facts = {"input_shape": input_shape, **({"num_classes": num_classes} if num_classes else {})}
    try:
        model = call_with("model.kwargs", factory, kwargs, facts)
    except Exception as error:  # sizes of any kind may be asked for
        if isinstance(error, InputError) or factory not in MODELS.values():
            raise
        raise InputError("model.kwargs", given=config.kwargs, expected=f"({error})") from None
    if not isinstance(model, nn.Module):
        raise InputError(
            "model.name", given=config.name, expected="a callable that returns a torch.nn.Module"
        )
    resting = [part for part in model.modules() if not part.training] if model.training else []
    model.train()  # which a model may have of its own, to keep some parts in eval mode
    for part in resting:
        part.training = False
    freeze(model, config)
    return model


def _unnamed(config: ModelConfig, factory: Callable[..., nn.Module], num_classes: int) -> str:
    """A line about a factory that has `num_classes` among its **kwargs perhaps, as those of
    torchvision do, and does not say so; else nothing."""
    signature = signature_of(factory)
    if (
        not num_classes
        or not takes_any(signature)
        or "num_classes" in named(signature)
        or "num_classes" in config.kwargs
    ):
        return ""
    return (
        f"{config.name} names no argument num_classes and is not given one; if it takes that all "
        f"the same, add --model.kwargs.num_classes {num_classes}"
    )


def _find(name: str) -> Callable[..., nn.Module]:
    """What makes the model of a name in `MODELS`, of a name in timm, or of an import path."""
    if name.startswith(from_timm.PREFIX):
        return functools.partial(from_timm.timm_model, name.removeprefix(from_timm.PREFIX))
    return resolve("model.name", name, MODELS)
