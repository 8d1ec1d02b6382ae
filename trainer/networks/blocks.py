"""The blocks of a model: the parts that are sharded, checkpointed or compiled one by one.

A network that is deep may say which of its modules these are:

    def blocks(self) -> list[nn.Module]

returns them in the order in which they are applied. They are modules of the network, none lies
within another, and the network calls each by `block(...)`, not by its `forward`. The attribute
`blocks` that the networks of many libraries have is read likewise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from configs.errors import InputError
from configs.schema_execution import ParallelConfig
from trainer.networks.activation_checkpointing import checkpoint_activations

CONTAINERS = (nn.Sequential, nn.ModuleList)
UNCALLED = (nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""What has no forward pass either."""


def declared_blocks(model: nn.Module) -> list[nn.Module]:
    """The modules that a network declares as its blocks, in order; none if it declares none.

    They are what its method `blocks()` returns, or the modules in its attribute `blocks`, be it a
    list, a `ModuleList` or a `Sequential`; nested containers are taken apart.

    Raises:
        InputError: If these are no modules of the network.
    """
    declared: Any = getattr(model, "blocks", None)
    if callable(declared) and not isinstance(declared, nn.Module):
        declared = declared()
    found = list(_flat(declared))
    known = set(model.modules())
    strangers = [block for block in found if block not in known]
    if strangers or len(set(found)) < len(found):
        raise InputError(
            f"blocks of {type(model).__name__}",
            given=[type(block).__name__ for block in strangers or found],
            expected="a list of modules of the network, each once",
        )
    return found


def _flat(declared: Any) -> Iterator[nn.Module]:
    """The modules in a list or container, or the one module that was declared."""
    if isinstance(declared, nn.ModuleList | nn.Sequential | list | tuple):
        for part in declared:
            yield from _flat(part) if isinstance(part, nn.ModuleList | nn.Sequential) else (part,)
    elif declared is not None:
        yield declared


def blocks(model: nn.Module) -> list[nn.Module]:
    """The parts with weights that a model runs one after the other, none within another.

    These are the blocks that it declares, or else the elements of its outermost `nn.Sequential` and
    `nn.ModuleList` containers.

    Raises:
        InputError: If it declares modules that are not its own.
    """
    found = declared_blocks(model) or list(_elements(model))
    return [block for block in found if next(block.parameters(), None) is not None]


def _elements(module: nn.Module) -> Iterator[nn.Module]:
    """The elements of outermost containers; a ModuleList within one is taken apart as well.

    A ModuleList has no forward pass that could be wrapped: its elements have, or theirs.
    """
    for child in module.children():
        if isinstance(module, CONTAINERS) and not isinstance(child, (*CONTAINERS, *UNCALLED)):
            yield child
        else:
            yield from _elements(child)


def check_shared_weights(model: nn.Module, found: Sequence[nn.Module]) -> None:
    """Refuse a weight that two blocks use: sharded, each would get a copy of its own.

    Args:
        model: The model.
        found: Its blocks.

    Raises:
        InputError: With the names of such a weight.
    """
    owners: dict[nn.Parameter, tuple[str, object]] = {}
    groups = {
        f"{name}.{own}" if name else own: block
        for name, block in model.named_modules(remove_duplicate=False)
        if block in found
        for own, _ in block.named_parameters(remove_duplicate=False)
    }
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first, owner = owners.setdefault(parameter, (name, groups.get(name)))
        if owner is not groups.get(name):
            raise InputError(
                "parallel.strategy=fsdp",
                given=f"one weight under the names {first} and {name}",
                expected="each weight in one block only",
                remedy="Give the model a method `blocks()` that leaves those parts out (they are "
                "then fetched together), or use --parallel.strategy ddp.",
            )


def prepare_blocks(model: nn.Module, config: ParallelConfig, world_size: int) -> None:
    """Change a model in place as `parallel` asks, before it is compiled or wrapped for its ranks.

    Its batch norms take their statistics over all ranks under `parallel.sync_batch_norm`, and its
    blocks are checkpointed under `parallel.activation_checkpointing`.
    """
    if config.sync_batch_norm and world_size > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    if config.activation_checkpointing:
        checkpoint_activations(blocks(model))


def check_blocks(
    model: nn.Module, config: ParallelConfig, device: torch.device, world_size: int
) -> None:
    """Refuse what `parallel` asks for and this model, device or number of ranks cannot do.

    Raises:
        InputError: With what to do instead.
    """
    if config.activation_checkpointing and not blocks(model):
        raise InputError(
            "parallel.activation_checkpointing",
            given=True,
            expected="a model with blocks",
            remedy="Give it a method `blocks()` that returns its parts in a list.",
        )
    if config.sync_batch_norm and world_size > 1 and device.type == "cpu":
        raise InputError(
            "parallel.sync_batch_norm",
            given=True,
            expected="GPUs, because torch.nn.SyncBatchNorm has no kernels for a CPU",
            remedy="Use --parallel.sync_batch_norm false: statistics are then each rank's own.",
        )
    if config.strategy == "fsdp" and world_size > 1:
        check_shared_weights(model, blocks(model))
        if world_size % (config.shard_size or 1):
            raise InputError(
                "parallel.shard_size",
                given=config.shard_size,
                expected=f"a divisor of the number of ranks, {world_size}",
                remedy="Choose the number of ranks of a node.",
            )
    if config.cpu_offload and not (
        config.strategy == "fsdp" and world_size > 1 and device.type == "cuda"
    ):
        raise InputError(
            "parallel.cpu_offload",
            given=True,
            expected="parallel.strategy=fsdp on two GPUs or more",
        )
