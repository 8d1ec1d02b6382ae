"""The networks that a config can name, and how a config becomes one."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import nn

from configs.errors import InputError
from configs.imports import call_with
from configs.registry import resolve
from configs.schema_training import ModelConfig
from trainer.networks import from_timm
from trainer.networks.convnet import ConvNet
from trainer.networks.gpt import GPT
from trainer.networks.mlp import MLP
from trainer.networks.resnet import resnet18, resnet50
from trainer.networks.resnet9 import ResNet9
from trainer.networks.vit import ViT
from trainer.ranks.rng import seed_stream

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

    A factory named by import path is called with `input_shape` and `num_classes` if it accepts
    them, and with `model.kwargs`. It must return a module whose output is `(B, num_classes)`
    logits.

    Args:
        config: The name of the model and its arguments.
        input_shape: Shape of one sample.
        num_classes: Number of logits.
        seed: The seed of the run.
        weights_follow: The caller loads all weights, so timm need not fetch pretrained ones.

    Returns:
        The model on the CPU, in training mode but for the parts that its author set to eval mode;
        one that came wholly in eval mode, as pretrained ones do, is wholly in training mode.

    Raises:
        InputError: If the factory does not exist, refuses its arguments or makes no module.
    """
    factory, kwargs = _find(config.name), dict(config.kwargs)
    if weights_follow and config.name.startswith(from_timm.PREFIX):
        kwargs = {key: kwargs[key] for key in kwargs if key not in from_timm.WEIGHTS}
    seed_stream(seed, "weights")
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
    return model if model.training else model.train()


def _find(name: str) -> Callable[..., nn.Module]:
    """What makes the model of a name in `MODELS`, of a name in timm, or of an import path."""
    if name.startswith(from_timm.PREFIX):
        return functools.partial(from_timm.timm_model, name.removeprefix(from_timm.PREFIX))
    return resolve("model.name", name, MODELS)
