"""torch.compile of the passes: which parts, how often, what it refuses, what it says."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.callback import callback_handler
from torch._dynamo.testing import CompileCounter

from configs.errors import InputError
from configs.schema_execution import CompileConfig
from configs.schema_training import PrecisionConfig
from data.facts import InputFacts
from data.loading.order import Plan
from data.normalize import Normalize
from data.samples import Batch
from tests.support.towers import Block, Tower
from trainer.backward.autograd import LossModule
from trainer.backward.compile_cache import forget_graphs
from trainer.backward.compile_watch import CompileWatch
from trainer.backward.compiling import (
    Compiled,
    check_whole,
    choose_regional,
    compile_passes,
    equal_blocks,
    regions,
)
from trainer.networks.activation_checkpointing import checkpoint_activations
from trainer.networks.resnet import resnet18
from trainer.objective.tasks import classification
from trainer.ranks.precision import build_precision

CONFIG = CompileConfig(enabled=True)
WHOLE = CompileConfig(enabled=True, fullgraph=True)
CPU = torch.device("cpu")
BREAKING = functools.partial(Block, breaks=True)


@pytest.fixture
def counter() -> Iterator[CompileCounter]:
    """Counts graphs and operations in place of making kernels."""
    found = CompileCounter()
    torch.compiler.set_default_backend(found)
    forget_graphs()
    yield found
    torch.compiler.set_default_backend(None)
    forget_graphs()


def loss_of(module: nn.Module) -> LossModule:
    facts = InputFacts(input_shape=(6,), num_classes=4, mean=(0.5,), std=(2.0,), scale=1.0)
    return LossModule(
        module,
        normalize=Normalize(facts, CPU),
        precision=build_precision(PrecisionConfig(), CPU),
        task=classification(),
    )


def batch(size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(size)
    inputs = torch.randn(size, 6, generator=generator)
    return Batch(inputs, torch.arange(size) % 4, size)


def take_passes(loss: LossModule, size: int = 8) -> list[Tensor]:
    loss.zero_grad()
    given = batch(size)
    loss(given.inputs, given.targets)[0].backward()
    return [p.grad.clone() for p in loss.parameters() if p.grad is not None]


def plan(**sizes: int) -> Plan:
    return Plan(num_samples=20, global_batch_size=8, seed=0, **sizes)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_equal_blocks_are_compiled_once(counter: CompileCounter, checkpointed: bool) -> None:
    """Law: what is compiled does not grow with the depth, and computes the same bits; the graph of
    a whole model grows."""
    work = {}
    for depth in (2, 12):
        for regional in (True, False):
            torch.manual_seed(0)
            module = Tower(depth)
            expected = take_passes(loss_of(copy.deepcopy(module)))
            if checkpointed:
                checkpoint_activations(module.blocks)
            loss = loss_of(module)
            names = list(loss.state_dict())
            compile_passes(loss, CONFIG, plan(), regional=regional)
            counter.clear()
            watch = CompileWatch()
            found = take_passes(loss)
            assert all(map(torch.equal, found, expected))
            assert list(loss.state_dict()) == names
            assert watch.graph_breaks == 0
            assert watch.recompilations == 0
            work[depth, regional] = (counter.frame_count, counter.op_count)
            forget_graphs()
    assert work[2, True] == work[12, True]
    assert work[2, True][0] == 2  # a block, and the loss
    assert work[2, False][0] == work[12, False][0] == 1
    if not checkpointed:  # there a block is one operation
        assert work[12, False][1] > 2 * work[2, False][1]


def test_an_evaluation_runs_what_was_written(counter: CompileCounter) -> None:
    loss = loss_of(Tower(2))
    compile_passes(loss, CONFIG, plan(), regional=True)
    take_passes(loss)
    before = counter.frame_count
    with torch.no_grad():
        for size in (3, 5, 7):
            loss.module(batch(size).inputs)
    assert counter.frame_count == before


def test_a_copy_computes_with_its_own_weights(counter: CompileCounter) -> None:
    loss = loss_of(Tower(2))
    compile_passes(loss, CONFIG, plan(), regional=True)
    take_passes(loss)
    other = copy.deepcopy(loss.module)
    with torch.no_grad():
        for parameter in other.blocks.parameters():
            parameter.zero_()
    given = batch().inputs
    assert torch.equal(other(given), other.head(other.stem(given)))
    assert not torch.equal(loss.module(given), other(given))
    assert not isinstance(other.blocks[0].forward, Compiled)


def test_every_size_and_every_kind_of_block_has_room_for_its_graph(
    counter: CompileCounter,
) -> None:
    """Law: torch gives up on a function after 8 graphs, and these are more."""
    module = Tower(12)
    for index, block in enumerate(module.blocks):
        for part in block.modules():
            part.training = bool(index % 2)
    loss = loss_of(module)
    sizes = range(2, 7)
    compile_passes(loss, WHOLE, plan(), regional=True)  # and then would refuse
    for size in sizes:
        take_passes(loss, size)
    graphs = counter.frame_count
    assert graphs > 8
    for size in sizes:
        take_passes(loss, size)
    assert counter.frame_count == graphs


@pytest.mark.parametrize("regional", [True, False])
def test_a_graph_break_is_refused_with_its_line(counter: CompileCounter, regional: bool) -> None:
    """Law: before anything is compiled, and the model is left as it was; later too."""
    lines, start = inspect.getsourcelines(Block.forward)
    number = start + next(i for i, line in enumerate(lines) if "graph_break()" in line)
    file = inspect.getsourcefile(Block)
    where = f"line {number} of {file}, in forward: torch._dynamo.graph_break()"
    broken = loss_of(Tower(2, BREAKING))
    before = {name: dict(vars(part)).keys() for name, part in broken.named_modules()}
    with pytest.raises(InputError) as refusal:
        check_whole(broken, WHOLE, batch(), regional=regional)
    assert where in str(refusal.value)
    assert counter.frame_count == 0
    for owner, name in regions(broken, regional=regional):
        assert not isinstance(getattr(owner, name), Compiled)
    assert before.keys() == dict(broken.named_modules()).keys()
    compile_passes(broken, WHOLE, plan(), regional=regional)
    with pytest.raises(InputError) as refusal:
        take_passes(broken)
    assert where in str(refusal.value)
    check_whole(loss_of(Tower(2)), WHOLE, batch(), regional=regional)


def test_what_is_compiled_is_counted(counter: CompileCounter) -> None:
    """Law: in the first record after it, and once; a second size is a recompilation."""
    loss = loss_of(Tower(2, BREAKING))
    compile_passes(loss, CONFIG, plan(), regional=False)
    watch, heard = CompileWatch(), list[int]()
    watch.on_start = lambda: heard.append(counter.frame_count)
    assert watch.news() == {}
    take_passes(loss)
    first = watch.news()
    assert first.keys() == {"compile/seconds", "compile/graph_breaks", "compile/recompilations"}
    assert first["compile/seconds"] > 0
    assert first["compile/graph_breaks"] >= 1
    assert heard[0] == 0
    assert "--compile.fullgraph true" in watch.line()
    take_passes(loss)
    assert watch.news() == {}
    take_passes(loss, 3)
    assert watch.news()["compile/recompilations"] > first["compile/recompilations"]
    listeners = len(callback_handler.start_callbacks)
    forget_graphs()  # torch forgets listeners then
    assert len(callback_handler.start_callbacks) == listeners
    watch.on_start = lambda: None
    del watch
    gc.collect()
    assert len(callback_handler.start_callbacks) == listeners - 1


def test_by_itself_a_deep_network_is_compiled_block_by_block() -> None:
    deep, shallow, none = Tower(8), Tower(7), nn.Linear(6, 4)
    assert [equal_blocks(model) for model in (deep, shallow, none)] == [8, 7, 0]
    assert equal_blocks(resnet18((3, 32, 32), 10)) == 2
    for model, expected in ((deep, True), (shallow, False), (none, False)):
        assert choose_regional(CONFIG, model, sharded=False) is expected
        assert choose_regional(CONFIG, model, sharded=True)
    yes, no = (CompileConfig(regional=asked) for asked in (True, False))
    assert choose_regional(yes, shallow, sharded=False)
    assert not choose_regional(no, deep, sharded=False)
    with pytest.raises(InputError, match=r"compile\.regional: given True, expected a model with"):
        choose_regional(yes, none, sharded=False)
    with pytest.raises(InputError, match=r"compile\.regional: given False, .*fsdp"):
        choose_regional(no, deep, sharded=True)
