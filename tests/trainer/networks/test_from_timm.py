"""Models of timm by name. Skipped, and said so, where timm cannot be imported."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from configs.errors import InputError
from configs.schema_model import ModelConfig
from tests.support.processes import train
from tests.support.runs import records
from trainer.networks.blocks import declared_blocks
from trainer.networks.from_timm import _import_timm
from trainer.networks.models import build_model


@pytest.fixture
def timm() -> Any:
    try:
        return _import_timm()
    except InputError as error:
        pytest.skip(f"TIMM IS NOT TESTED: {error}")


def build(
    name: str,
    shape: tuple[int, ...] = (1, 9, 7),
    *,
    weights_follow: bool = False,
    seed: int = 0,
    **kwargs: Any,
) -> nn.Module:
    return build_model(
        ModelConfig(name=name, kwargs=kwargs),
        input_shape=shape,
        num_classes=5,
        seed=seed,
        weights_follow=weights_follow,
    )


@pytest.mark.parametrize("absent", ["timm", "torchvision"])
def test_without_timm_the_extra_is_named(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", nn)  # any module
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(InputError, match=rf"{absent} is not installed.*extra `timm`"):
        build("timm/resnet18")


def test_a_torchvision_that_was_built_for_another_torch_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchvision for CUDA fails beside torch for CPUs: it is no ImportError."""
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision")
    with pytest.raises(InputError, match=r"operator nms does not exist.*the same index"):
        build("timm/resnet18")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("timm/resnet18", (1, 9, 7)),
        ("timm/resnet18.a1_in1k", (2, 16, 16)),
        ("timm/vit_tiny_patch16_224", (3, 32, 48)),
    ],
)
def test_a_model_is_built_for_the_data(timm: Any, name: str, shape: tuple[int, ...]) -> None:
    """Law: channels, classes and, where it is fixed, the size of the images are the data's."""
    model = build(name, shape)
    assert model.training
    assert model(torch.randn(2, *shape)).shape == (2, 5)


def test_arguments_are_passed_on(timm: Any) -> None:
    model = build("timm/vit_tiny_patch16_224", (1, 8, 8), patch_size=2, depth=3)
    assert len(declared_blocks(model)) == 3
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "kwargs", "named"),
    [
        ("timm/resnet81", {}, "Did you mean 'timm/resnet"),
        ("timm/resnet18", {"widht": 3}, "unexpected keyword argument 'widht'"),
        ("timm/resnet18.a1_in2k", {}, "Did you mean 'timm/resnet18.a1_in1k"),
        ("timm/vgg11", {}, r"vgg11 cannot be built for inputs \(1, 9, 7\)"),
        ("timm/vit_tiny_patch16_224", {}, r"cannot be built for inputs \(1, 9, 7\)"),
    ],
)
def test_what_timm_cannot_build_is_refused(
    timm: Any, name: str, kwargs: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        build(name, **kwargs)


def test_pretrained_weights_are_not_fetched_for_a_model_whose_weights_follow(
    timm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: a trained run is used without the network, and without the cache of the hub."""
    from timm.models import _builder

    def fetch(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(_builder, "load_pretrained", fetch)
    with pytest.raises(InputError, match="no network"):
        build("timm/resnet18", pretrained=True)
    assert isinstance(build("timm/resnet18", pretrained=True, weights_follow=True), nn.Module)


@pytest.mark.process
def test_a_run_trains_one(timm: Any, small: Callable[..., list[str]], tmp_path: Path) -> None:
    train(*small("run", "--model.name=timm/resnet18", "--model.kwargs={}", "--train.max_steps=3"))
    assert [r["step"] for r in records(tmp_path / "run") if "train/loss" in r] == [1, 2, 3]
