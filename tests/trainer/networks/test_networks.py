"""Laws that every reference network of pictures keeps."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from configs.errors import InputError
from configs.schema_model import ModelConfig
from tests.support.data_sets import make_idx
from tests.support.processes import train
from tests.support.runs import assert_same_bits, records
from trainer.networks.blocks import declared_blocks
from trainer.networks.models import MODELS, build_model

NETWORKS = [name for name in MODELS if name not in ("mlp", "gpt")]
RESNET50_SLOW = [
    pytest.param(name, marks=pytest.mark.slow) if name == "resnet50" else name for name in NETWORKS
]
CONVOLUTIONAL = [name for name in NETWORKS if name != "vit"]
SMALL: dict[str, dict[str, Any]] = {
    "convnet": {"widths": [8, 16]},
    "resnet9": {"widths": [8, 16, 16, 32]},
    "vit": {"depth": 2, "width": 32},
}
"""Arguments that make a network quick, where it has any."""
CLASSES = 5


def build(
    name: str, shape: tuple[int, ...] = (1, 12, 8), *, seed: int = 0, **kwargs: Any
) -> nn.Module:
    config = ModelConfig(name=name, kwargs=kwargs)
    return build_model(config, input_shape=shape, num_classes=CLASSES, seed=seed)


def batch(shape: tuple[int, ...] = (1, 12, 8), size: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, *shape, generator=generator), torch.arange(size) % CLASSES


def learn(model: nn.Module, *, steps: int, lr: float = 1e-3) -> list[float]:
    """Losses of a few steps of Adam on one batch."""
    inputs, targets = batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 8, 20), (3, 72, 64)])
@pytest.mark.parametrize("name", NETWORKS)
def test_images_of_many_sizes_become_logits(name: str, shape: tuple[int, ...]) -> None:
    model = build(name, shape, **SMALL.get(name, {}))
    assert model(torch.randn(2, *shape)).shape == (2, CLASSES)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_untrained_network_finds_all_classes_about_as_likely(name: str) -> None:
    """Law: the loss of the first step is about ln(classes)."""
    inputs, targets = batch((1, 28, 28), 20)
    loss = F.cross_entropy(build(name, (1, 28, 28))(inputs), targets)
    assert loss.item() == pytest.approx(math.log(CLASSES), abs=0.25)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_reaches_every_parameter(name: str) -> None:
    """Law: in the second step, when the residual blocks that start as the identity have moved."""
    model = build(name, **SMALL.get(name, {}))
    learn(model, steps=2)
    untouched = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []


@pytest.mark.parametrize("name", RESNET50_SLOW)
def test_a_few_steps_learn_ten_samples_by_heart(name: str) -> None:
    steps, lr = {"resnet18": (10, 1e-3), "resnet50": (5, 1e-3)}.get(name, (40, 1e-2))
    losses = learn(build(name, **SMALL.get(name, {})), steps=steps, lr=lr)
    assert losses[0] > 1.2
    assert losses[-1] < 0.15


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "resnet50"])
def test_seed_and_data_decide_the_weights_to_the_last_bit(name: str) -> None:
    """Law: the seed alone decides the initial weights; the same steps lead to the same bits."""
    kwargs = SMALL.get(name, {})
    torch.manual_seed(1)
    first = build(name, seed=3, **kwargs)
    torch.manual_seed(2)
    second = build(name, seed=3, **kwargs)
    assert torch.equal(
        parameters_to_vector(first.parameters()), parameters_to_vector(second.parameters())
    )
    assert not torch.equal(
        parameters_to_vector(first.parameters()),
        parameters_to_vector(build(name, seed=4, **kwargs).parameters()),
    )
    assert learn(first, steps=3) == learn(second, steps=3)
    assert torch.equal(
        parameters_to_vector(first.parameters()), parameters_to_vector(second.parameters())
    )


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_channels_last_goes_through_every_layer(name: str) -> None:
    """Law: no layer falls back to the other memory format, and the logits stay the same."""
    model = build(name, (3, 16, 16), **SMALL.get(name, {})).eval()
    inputs = torch.randn(2, 3, 16, 16)
    expected = model(inputs)
    broken: list[str] = []

    def look(module: nn.Module, _: Any, output: Tensor) -> None:
        if output.dim() == 4 and not output.is_contiguous(memory_format=torch.channels_last):
            broken.append(type(module).__name__)

    for module in model.modules():
        module.register_forward_hook(look)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    actual = model(inputs.contiguous(memory_format=torch.channels_last))
    assert broken == []
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_one_graph_for_every_batch_size(name: str) -> None:
    """Law: torch.export follows it whole, so that torch.compile and ONNX do too."""
    model = build(name, **SMALL.get(name, {})).eval()
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (batch()[0],), dynamic_shapes=dynamic).module()
    for size in (1, 7):
        inputs, _ = batch(size=size)
        torch.testing.assert_close(program(inputs), model(inputs))


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_are_called_one_by_one_and_do_most_of_the_work(name: str) -> None:
    """Law: each block is called once, in the order of the list, and none lies within another."""
    model = build(name)
    blocks = declared_blocks(model)
    called: list[nn.Module] = []
    for block in blocks:
        block.register_forward_hook(lambda module, *_: called.append(module))
    model(batch()[0])
    assert called == blocks
    within = {inner for block in blocks for inner in block.modules() if inner is not block}
    assert not within & set(blocks)
    held = sum(p.numel() for block in blocks for p in block.parameters())
    assert held > 0.9 * sum(p.numel() for p in model.parameters())


class Declared(nn.Module):
    """A network with an attribute `blocks`, as libraries have it."""

    def __init__(self, blocks: Any) -> None:
        super().__init__()
        self.blocks = blocks


def test_blocks_are_read_from_the_attribute_of_other_peoples_networks() -> None:
    one, two, three = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)
    flat, nested = nn.ModuleList([one, two]), nn.Sequential(nn.Sequential(one, two), three)
    assert declared_blocks(Declared(flat)) == [one, two]
    assert declared_blocks(Declared(nested)) == [one, two, three]
    assert declared_blocks(nn.Sequential(one, two)) == []


@pytest.mark.parametrize("blocks", [lambda: [nn.Linear(1, 1)], lambda: 3, [4, 5]])
def test_blocks_that_are_no_modules_of_the_network_are_refused(blocks: Any) -> None:
    with pytest.raises(InputError, match="blocks of Declared: given"):
        declared_blocks(Declared(blocks))


@pytest.mark.parametrize(
    ("name", "kwargs", "named"),
    [
        ("convnet", {"width": 8}, r"ConvNet\(.*widths.*dropout"),
        ("convnet", {"widths": []}, "widths"),
        ("convnet", {"widths": [8, 0]}, "widths"),
        ("convnet", {"widths": 8}, "widths"),
        ("convnet", {"widths": "wide"}, "widths"),
        ("convnet", {"dropout": 1.0}, "dropout"),
        ("convnet", {"dropout": "much"}, "model.kwargs"),
        ("resnet9", {"widths": [8, 8, 8]}, "widths"),
        ("resnet9", {"logit_scale": 0}, "logit_scale"),
        ("resnet18", {"stem": "small"}, "stem.*auto, cifar, imagenet"),
        ("resnet50", {"depth": 3}, r"resnet50\(.*stem"),
        ("vit", {"depth": 0}, "depth"),
        ("vit", {"width": 8.5}, "width"),
        ("vit", {"width": 30}, "heads.*divisor of the width, 30"),
        ("vit", {"mlp_ratio": 0}, "mlp_ratio"),
        ("vit", {"dropout": -0.1}, "dropout"),
        ("vit", {"patch_size": 5}, "patch_size.*images of 12 x 8 pixels. These are 1, 2, 4"),
        ("vit", {"patch_size": True}, "patch_size"),
    ],
)
def test_arguments_a_network_cannot_take_are_refused(
    name: str, kwargs: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named) as caught:
        build(name, **kwargs)
    assert str(caught.value).startswith("model.kwargs")


@pytest.mark.parametrize(
    ("name", "shape", "named"),
    [
        ("convnet", (1, 3, 9), "images of 3 x 9 pixels', expected 4 or more"),
        ("resnet9", (1, 9, 7), "images of 9 x 7 pixels', expected 8 or more"),
        ("vit", (1, 9, 7), "patch_size.*These are 1"),
        ("resnet18", (63,), r"given \(63,\), expected the shape of images"),
    ],
)
def test_images_a_network_cannot_take_are_refused(
    name: str, shape: tuple[int, ...], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        build(name, shape)


RUNS: dict[str, dict[str, Any]] = {
    "convnet": {},
    "resnet9": {},
    "resnet18": {},
    "resnet50": {},
    "vit": {"patch_size": 2},
}


QUICK = ("convnet", "vit")


@pytest.mark.process
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in RUNS]
)
def test_a_run_trains_each_of_them(
    name: str, small: Callable[..., list[str]], tmp_path: Path
) -> None:
    data = make_idx(tmp_path / "idx", num_train=72, num_test=20, shape=(10, 8))
    kwargs = str(RUNS[name]).replace("'", '"')
    arguments = small("run", f"--data.root={data}", f"--model.name={name}", "--train.epochs=1")
    train(*arguments, f"--model.kwargs={kwargs}", "--optimizer.name=sgd")
    found = records(tmp_path / "run")
    losses = [record["train/loss"] for record in found if "train/loss" in record]
    assert len(losses) == 3
    assert losses[0] == pytest.approx(math.log(CLASSES), abs=0.5)
    assert found[-1]["eval/count"] == 20


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnet", "vit"])
def test_exact_reduction_gives_them_the_same_bits_on_two_ranks(
    name: str, small: Callable[..., list[str]], tmp_path: Path
) -> None:
    kwargs = {"convnet": '{"widths": [8, 8]}', "vit": '{"patch_size": 1, "depth": 2, "width": 16}'}
    options = (
        f"--model.name={name}",
        f"--model.kwargs={kwargs[name]}",
        "--parallel.reduction=exact",
        "--parallel.shards=4",
        "--data.drop_last=true",
        "--train.max_steps=4",
    )
    train(*small("one", *options))
    train(*small("two", *options), ranks=2)
    assert_same_bits(tmp_path / "one", tmp_path / "two")
