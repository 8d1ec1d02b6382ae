"""How a run is executed: decided once, the same for a GPU that is only described."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import trainer.steps_in_a_row
from configs.errors import InputError
from configs.load import RECIPES, load_config
from data.augment import build_augment
from data.datasets import ArrayDataset, MapDataset
from data.formats.tokens import TokenWindows
from data.loading.loader import placement
from data.vocabulary import of_bytes
from trainer.components import build_plan
from trainer.execution import decide
from trainer.networks.models import build_model
from trainer.objective.tasks import build_task
from trainer.ranks.runtime import Runtime
from trainer.steps_in_a_row import MAX_EXECUTED, MAX_RECORDED
from trainer.ways import Execution, Subject

SHAPES = {"cifar10": (3, 32, 32), "csv": (13,), "tokens": (16,)}
NUM_SAMPLES, GPU_BYTES = 60_000, 80 << 30


def decided(
    recipe: str, *overrides: str, device: str = "cpu", ranks: int = 1, rank: int = 0
) -> Execution:
    """The decision for a recipe on a described device, without data and without a device."""
    config = load_config([f"--config={recipe}", *overrides], prog="", description="")
    shape = SHAPES.get(config.data.dataset, (1, 28, 28))
    inputs = torch.zeros((), dtype=torch.uint8).expand(NUM_SAMPLES, *shape)
    data: MapDataset = ArrayDataset(inputs, torch.zeros((), dtype=torch.int64).expand(NUM_SAMPLES))
    if config.data.dataset == "tokens":  # mapped, and read a batch at a time
        data = TokenWindows(
            np.zeros(2, np.uint16), of_bytes(separator=False), context=16, stride=16
        )
    runtime = Runtime(
        launcher="described", rank=rank, world_size=ranks, device=torch.device(device)
    )
    return decide(
        config,
        Subject(
            model=build_model(config.model, input_shape=shape, num_classes=10, seed=0),
            task=build_task(config.task, label_smoothing=config.train.label_smoothing),
            augment=build_augment(config.data.augment, shape, 10),
            plan=build_plan(config, runtime, NUM_SAMPLES),
            input_shape=shape,
            device=runtime.device,
            world_size=ranks,
            resident=placement(config.data, [data, data], GPU_BYTES if device == "cuda" else None),
        ),
    )


def words(execution: Execution) -> str:
    steps = execution.ways["steps"]
    return f"{execution.gradients}, {execution.kernel}, {execution.reduction}, {steps}"


ROWS, GRAPHS = f"up to {MAX_EXECUTED} in a row", f"CUDA graphs of up to {MAX_RECORDED} in a row"
PLAIN = {  # one rank and four, on a CPU and on a GPU
    ("cpu", 1): f"written out, flat, none, {ROWS}",
    ("cpu", 4): f"written out, flat, all-reduce, {ROWS}",
    ("cuda", 1): f"written out, flat, none, {GRAPHS}",
    ("cuda", 4): f"written out, flat, all-reduce, {GRAPHS}",
}
AUTOGRAD = {
    ("cpu", 1): "autograd, direct, none, one by one",
    ("cpu", 4): "autograd, direct, DDP, one by one",
    ("cuda", 1): f"compiled autograd, direct, none, {GRAPHS}",
    ("cuda", 4): f"compiled autograd, direct, DDP, {GRAPHS}",
}
WIDE = PLAIN | {  # the samples of a step, or of five, fill the cache
    ("cpu", 1): "written out, flat, none, one by one",
    ("cpu", 4): "written out, flat, all-reduce, up to 5 in a row",
}
AUGMENTED = PLAIN | {
    ("cpu", 1): "written out, flat, none, one by one",
    ("cpu", 4): "written out, flat, all-reduce, one by one",
}
MAPPED = AUTOGRAD | {
    ("cuda", 1): "compiled autograd, direct, none, one by one",
    ("cuda", 4): "compiled autograd, direct, DDP, one by one",
}
SHARDED = {
    ("cpu", 1): "compiled autograd, direct, none, one by one",
    ("cpu", 4): "compiled autograd, own, reduce-scatter, one by one",
    ("cuda", 1): "compiled autograd, direct, none, one by one",
    ("cuda", 4): "compiled autograd, own, reduce-scatter, one by one",
}
QUICK = {"gpt_small": ('--model.kwargs={"depth": 1, "width": 16, "heads": 2}',)}
"""Options that build a smaller model, of which the decision is the same."""
PINNED = {
    "cifar10_resnet": AUTOGRAD,
    "fashion_mnist": PLAIN,
    "fashion_mnist_convnet": AUTOGRAD,
    "gpt_chars": MAPPED,
    "gpt_small": SHARDED,
    "idx": PLAIN,
    "mnist": PLAIN,
    "mnist_accurate": AUGMENTED,
    "mnist_batch_norm": AUTOGRAD,
    "mnist_fast": PLAIN,
    "mnist_sgd": PLAIN,
    "mnist_sgd_cosine": PLAIN,
    "mnist_sgd_untuned": PLAIN,
    "mnist_wide": WIDE,
    "mnist_wide_bf16": WIDE,
    "wine": PLAIN,
}


def test_every_recipe_is_pinned() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == set(PINNED)


@pytest.mark.parametrize("recipe", PINNED)
def test_a_recipe_runs_as_it_did(recipe: str) -> None:
    options = QUICK.get(recipe, ())
    found = {
        at: words(decided(recipe, *options, device=at[0], ranks=at[1])) for at in PINNED[recipe]
    }
    assert found == PINNED[recipe]


@pytest.mark.parametrize(
    ("overrides", "most"),
    [
        ([], MAX_EXECUTED),
        (["--train.ema_decay=0.9", "--train.clip_norm=1", "--schedule.name=cosine"], MAX_EXECUTED),
        (["--optimizer.name=sgd"], MAX_EXECUTED),
        (["--train.micro_batch_size=8"], 1),  # made ready together are whole batches
        (["--data.augment.shift=1"], 1),
        (["--data.placement=host"], 1),
        (["--compile.backward=autograd"], 1),
        (["--precision.dtype=bf16"], MAX_EXECUTED),
        (["--precision.dtype=fp16"], MAX_EXECUTED),
        (["--precision.dtype=fp16", "--compile.backward=autograd"], 1),  # a CPU is never behind
        (["--parallel.reduction=exact"], 1),
        (["--schedule.name=StepLR", "--schedule.kwargs.step_size=5"], 1),
        (["--optimizer.name=rmsprop"], 1),
        (["--profile.enabled=true"], MAX_EXECUTED),  # it measures the path that the run takes
        (["--parallel.engine=accelerate"], 1),
    ],
)
def test_a_cpu_takes_steps_in_a_row_where_that_pays(overrides: list[str], most: int) -> None:
    assert decided("mnist", *overrides).max_steps == most


CHOICES: list[tuple[list[str], int, str, str]] = [
    (["--parallel.strategy=fsdp"], 2, "engine", "FSDP"),
    (["--parallel.strategy=fsdp"], 1, "engine", "native"),
    (["--parallel.engine=accelerate"], 2, "engine", "Accelerate"),
    (
        ["--parallel.engine=accelerate", "--parallel.strategy=fsdp"],
        2,
        "engine",
        "Accelerate with FSDP",
    ),
    (["--parallel.strategy=fsdp"], 2, "reduction", "reduce-scatter"),
    (["--parallel.reduction=exact"], 1, "reduction", "exact tree"),
    (["--parallel.compression=powersgd"], 2, "reduction", "PowerSGD"),
    (["--parallel.compression=bf16"], 2, "reduction", "all-reduce"),
    (["--compile.enabled=true"], 1, "gradients", "compiled autograd"),
    (["--data.augment.shift=1"], 1, "gradients", "written out"),
    (["--optimizer.name=rmsprop"], 1, "kernel", "own"),
    (["--optimizer.name=adamw", "--optimizer.kwargs.amsgrad=true"], 1, "kernel", "direct"),
    (["--optimizer.name=adamw", "--optimizer.kwargs.foreach=true"], 1, "kernel", "own"),
    (["--parallel.strategy=fsdp"], 2, "kernel", "own"),
]


@pytest.mark.parametrize(("overrides", "ranks", "name", "way"), CHOICES)
def test_what_leads_to_what(overrides: list[str], ranks: int, name: str, way: str) -> None:
    assert getattr(decided("mnist", *overrides, ranks=ranks), name) == way


def test_every_choice_has_words_and_a_reason() -> None:
    for device, ranks in PLAIN:
        execution = decided("mnist", device=device, ranks=ranks)
        found = execution.to_json()
        assert set(found) == {"engine", "gradients", "reduction", "optimizer", "steps", "data"}
        assert all(item["way"] and item["because"] for item in found.values())
        assert execution.line().startswith("runs as: engine native, gradients written out, ")


def test_data_that_does_not_fit_stays_in_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decided("mnist", device="cuda").ways["data"] == "on the device"
    monkeypatch.setattr("tests.trainer.test_execution.GPU_BYTES", 1 << 20)
    execution = decided("mnist", device="cuda")
    assert execution.ways["data"] == "from host memory"
    assert execution.ways["steps"] == "one by one"


def test_large_batches_are_not_made_ready_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies ready has to stay in the caches."""
    monkeypatch.setitem(trainer.steps_in_a_row.BLOCK_BYTES, "cpu", 3 * 64 * 28 * 28 * 4)
    assert decided("mnist").max_steps == 3


def test_all_ranks_take_as_many_steps_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """They agree on stop requests between rows: 64 samples on 3 ranks are 21, 21 and 22."""
    monkeypatch.setitem(trainer.steps_in_a_row.BLOCK_BYTES, "cpu", 3 * 21 * 28 * 28 * 4)
    assert [decided("mnist", ranks=3, rank=rank).max_steps for rank in range(3)] == [2, 2, 2]


def test_all_ranks_decide_alike_where_their_parts_differ() -> None:
    """8 samples on 3 ranks, 2 at once: the first has one micro-batch, the others have two."""
    options = ("--train.global_batch_size=8", "--train.micro_batch_size=2")
    found = [decided("mnist", *options, ranks=3, rank=rank) for rank in range(3)]
    assert [(execution.stages, execution.max_steps) for execution in found] == [(False, 1)] * 3


def test_a_network_of_ones_own_is_recorded_if_a_trial_agrees() -> None:
    own = "--model.name=tests.support.own_networks:Plain"
    execution = decided("mnist", own, device="cuda", ranks=2)
    assert (execution.cuda_graphs, execution.tried) == (True, True)
    assert execution.ways["steps"] == f"{GRAPHS}, if a trial agrees"
    assert not decided("mnist", device="cuda", ranks=2).tried


def test_recording_can_be_refused() -> None:
    assert not decided("mnist", "--compile.capture=false", device="cuda").cuda_graphs


@pytest.mark.parametrize(
    ("overrides", "ranks", "words"),
    [
        (["--parallel.reduction=exact"], 1, "parallel.reduction fast"),
        (["--data.placement=host"], 1, "data in device memory"),
        (["--data.augment.mixup=0.2"], 1, "no mixup"),
        (["--schedule.name=StepLR", "--schedule.kwargs.step_size=5"], 1, "a function of the step"),
        (["--parallel.backend=gloo"], 2, "parallel.backend nccl"),
        (["--parallel.compression=powersgd"], 2, "parallel.compression none, bf16 or fp16"),
        (["--parallel.find_unused_parameters=true"], 2, "parallel.find_unused_parameters"),
    ],
)
def test_what_a_gpu_cannot_record_is_named(overrides: list[str], ranks: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        decided("mnist", "--compile.capture=true", *overrides, device="cuda", ranks=ranks)


def test_a_gate_that_nothing_goes_through_is_refused() -> None:
    gate = "--compile.fullgraph=true"
    with pytest.raises(InputError, match=r"compile\.fullgraph.*--compile\.enabled true"):
        decided("mnist", gate)
    assert decided("mnist", gate, "--compile.enabled=true").compiled
    assert decided("cifar10_resnet", gate, device="cuda").compiled


def test_how_it_is_compiled_is_said_with_the_reason() -> None:
    """Law: a deep network and FSDP block by block; convolutions on a GPU in bf16 channels last."""
    deep = ('--model.kwargs={"depth": 8, "width": 16, "heads": 2}',)
    found = decided("gpt_chars", *deep, device="cuda")
    assert found.ways["gradients"] == "compiled autograd (each block once)"
    assert "compile.regional auto, 8 equal blocks" in found.because["gradients"]
    assert not decided("gpt_chars", *deep).regional
    assert decided("mnist_batch_norm", "--parallel.strategy=fsdp", device="cuda", ranks=2).regional
    half = decided("cifar10_resnet", "--precision.dtype=bf16", device="cuda")
    assert half.ways["gradients"] == "compiled autograd (channels last)"


def test_recording_that_is_asked_for_and_impossible_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"compile\.capture.*a CUDA device.*--compile.capture auto"
    ):
        decided("mnist", "--compile.capture=true")
