"""How deep in a model each of its parameters is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from data.structures import tensors


@contextmanager
def noting_depths(model: nn.Module) -> Iterator[dict[str, int]]:
    """Around the first forward pass of `model`: fills in the depth of each parameter by its name.

    It is the number of modules with parameters that were called before the one that owns it. Those
    that are called one after the other with the same tensor, as query, key and value of an
    attention, are side by side: of one depth. A module that is not called itself is as deep as the
    one around it.
    """
    depths: dict[str, int] = {}
    called: dict[str, int] = {}
    taken: list[Tensor | None] = []
    """The first input at each depth; kept, so that no other tensor has its place in memory."""

    def entering(name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            first = next(tensors((args, kwargs)), None)
            if name not in called:
                if not (taken and _are_same(taken[-1], first)):
                    taken.append(first)
                called[name] = len(taken) - 1

        return enter

    owners = {
        name: module
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    }
    handles = [
        module.register_forward_pre_hook(entering(name), with_kwargs=True)
        for name, module in owners.items()
    ]
    try:
        yield depths
    finally:
        for handle in handles:
            handle.remove()
    for name, _ in model.named_parameters():
        owner = name.rpartition(".")[0]
        while owner and owner not in called:
            owner = owner.rpartition(".")[0]
        depths[name] = called.get(owner, 0)


def _are_same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return False
    return first.data_ptr() == second.data_ptr() and first.numel() == second.numel()
