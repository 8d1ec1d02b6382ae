"""torch.compile: which parts of the passes, with how many graphs, and what it takes on a CPU."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from configs.errors import InputError
from configs.schema_execution import CompileConfig
from data.loading.order import Plan
from data.samples import Batch
from trainer.backward.autograd import LossModule
from trainer.backward.compile_cache import cache_folder, drop_damaged, forget_graphs, recovering
from trainer.networks.blocks import blocks
from trainer.networks.module_state import untouched

MANY_EQUAL_BLOCKS = 8
"""Equal blocks from which on `compile.regional: auto` compiles one of them instead of all."""
OVERWRITING = ("reduce-overhead", "max-autotune")
"""Modes in which torch.compile records CUDA graphs, whose outputs live until the next pass.
https://docs.pytorch.org/docs/stable/torch.compiler_cudagraph_trees.html#limitations"""
NO_GRAPH_BREAK = "a model that torch.compile takes whole, as compile.fullgraph asks"


class Compiled:
    """A function that is compiled where gradients are recorded.

    An evaluation runs it as it was written, so that every command computes what training did. A
    copy of it, such as that of a module which has it, is the function that was compiled.
    """

    def __init__(
        self, plain: Callable[..., Any], config: CompileConfig, backend: str | None = None
    ) -> None:
        """
        Args:
            plain: The function.
            config: How it is compiled.
            backend: Of torch.compile; None: what makes kernels.
        """
        self.plain = plain
        options: dict[str, Any] = {} if backend is None else {"backend": backend}
        compiled = torch.compile(
            plain, dynamic=False, fullgraph=config.fullgraph, mode=config.mode, **options
        )
        call = recovering(compiled)
        self._call = refusing(call) if config.fullgraph else call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.plain(*args, **kwargs)
        return self._call(*args, **kwargs)

    def __reduce__(self) -> Any:
        return _same, (self.plain,)


def _same(plain: Callable[..., Any]) -> Callable[..., Any]:
    return plain


def equal_blocks(model: nn.Module) -> int:
    """How many blocks of a model are of one kind, of that with most of them.

    Blocks of one class whose parameters and buffers have the same names, shapes and types share
    what is compiled.
    """
    kinds = Counter(
        (
            type(block),
            block.training,
            tuple((n, p.shape, p.dtype, p.requires_grad) for n, p in block.named_parameters()),
            tuple((n, b.shape, b.dtype) for n, b in block.named_buffers()),
        )
        for block in blocks(model)
    )
    return max(kinds.values(), default=0)


def choose_regional(config: CompileConfig, model: nn.Module, *, sharded: bool) -> bool:
    """Decide `compile.regional` for a model that is compiled.

    Raises:
        InputError: If it is asked for what cannot be had.
    """
    if config.regional is False and sharded:
        raise InputError(
            "compile.regional",
            given=False,
            expected="auto or true with parallel.strategy=fsdp",
            remedy="Weights are fetched between blocks, where no graph reaches.",
        )
    if config.regional is True and not sharded and not blocks(model):
        raise InputError(
            "compile.regional",
            given=True,
            expected="a model with blocks",
            remedy="Give it a method `blocks()` that returns its parts in a list.",
        )
    if config.regional == "auto":
        return sharded or equal_blocks(model) >= MANY_EQUAL_BLOCKS
    return config.regional


def compile_passes(loss: LossModule, config: CompileConfig, plan: Plan, *, regional: bool) -> None:
    """Compile the passes of a model in place, before it is wrapped for its ranks.

    Whole, or `regional`: each block, and the loss. What is compiled for a block serves all that are
    equal, and hooks, such as FSDP's, stay outside of it.

    Every size of a micro-batch gets a graph of its own, since a dynamic one would be slower for
    all: usually two, full and short, and with train.batch_schedule more than torch would allow.
    With model.train_from so has every set of parameters that is trained.
    """
    dynamo = torch._dynamo.config
    graphs = 8 * len(plan.micro_batch_sizes) * (len(blocks(loss.module)) if regional else 1)
    dynamo.recompile_limit = max(dynamo.recompile_limit, graphs)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, graphs)
    drop_damaged(cache_folder())
    for owner, name in regions(loss, regional=regional):
        setattr(owner, name, Compiled(getattr(owner, name), config))
    loss.overwritten = config.mode in OVERWRITING


def regions(loss: LossModule, *, regional: bool) -> list[tuple[nn.Module, str]]:
    """What is compiled by itself: the attribute of a module that holds it."""
    if not regional:
        return [(loss, "forward")]
    own = blocks(loss.module) or [loss.module]
    return [*((block, "forward") for block in own), (loss, "learn")]


def check_whole(loss: LossModule, config: CompileConfig, batch: Batch, *, regional: bool) -> None:
    """Follow the passes of a model through its code without making kernels.

    Leaves no trace but in the random generators.

    Args:
        loss: The model with its normalisation and loss, not compiled.
        config: With `fullgraph`.
        batch: On its device.
        regional: Whether its blocks are compiled by themselves.

    Raises:
        InputError: With the line at which the graph breaks.
    """
    parts = regions(loss, regional=regional)
    for owner, name in parts:
        setattr(owner, name, Compiled(getattr(owner, name), config, backend="eager"))
    try:
        with untouched(loss.module):
            loss(batch.inputs, batch.targets)
    finally:
        for owner, name in parts:
            setattr(owner, name, getattr(owner, name).plain)
        forget_graphs()


def refusing(call: Callable[..., Any]) -> Callable[..., Any]:
    """A function compiled with `fullgraph`, whose refusal is one message with the user's line."""
    from torch._dynamo.exc import UncapturedHigherOrderOpError, Unsupported, UserError

    def attempt(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except (Unsupported, UserError, UncapturedHigherOrderOpError) as error:
            stack = getattr(error, "real_stack", None)
            if not stack:
                raise
            library = os.path.dirname(torch.__file__)
            at = [*stack[:1], *(f for f in stack if not f.filename.startswith(library))][-1]
            raise InputError(
                f"line {at.lineno} of {at.filename}, in {at.name}: {at.line}",
                given=(str(getattr(error, "msg", error)).strip().splitlines() or [""])[0],
                expected=NO_GRAPH_BREAK,
                remedy="Change that line, or use --compile.fullgraph false, which computes it "
                "between two graphs.",
            ) from None

    return attempt


def check_compiler(device: torch.device) -> None:
    """Refuse to compile where that is not possible.

    Raises:
        InputError: On a CPU without a C++ compiler.
    """
    compilers = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    if device.type == "cpu" and not any(name and shutil.which(name) for name in compilers):
        raise InputError(
            "compile.enabled",
            given="true",
            expected="a C++ compiler (g++ or clang++) on the PATH",
            remedy="Install one, point CXX at one, or use --compile.enabled false.",
        )
