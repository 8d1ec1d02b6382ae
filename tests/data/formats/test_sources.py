"""Laws of every kind of data set: its batches depend on seed, epoch and index, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.errors import InputError
from configs.schema import DataConfig
from data.datasets import Datasets, load_datasets
from data.loading.host_loader import HostLoader
from data.loading.order import Plan
from data.samples import Batch
from tests.support.data_sets import (
    CLASSES,
    JITTER,
    make_arrays,
    make_cifar,
    make_saved,
    make_shard,
    make_shards,
    make_tree,
)
from tests.support.loading import CPU, WORKERS, take

SMALL = {"size": 12}
KINDS: dict[str, tuple[str, Callable[[Path], Path], dict[str, Any]]] = {
    "image_folder": ("image_folder", make_tree, SMALL),
    "image_folder, augmented": ("image_folder", make_tree, SMALL | {"augment": JITTER}),
    "npy": ("npy", make_arrays, {}),
    "cifar10": ("cifar10", make_cifar, {}),
    "webdataset": ("webdataset", make_shards, SMALL),
    "webdataset, augmented": ("webdataset", make_shards, SMALL | {"augment": JITTER}),
    "huggingface": ("huggingface", make_saved, SMALL | {"augment": JITTER}),
}


@pytest.fixture(scope="module", params=list(KINDS))
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Datasets:
    """A small data set of each kind."""
    name, make, kwargs = KINDS[request.param]
    if name == "huggingface" and find_spec("datasets") is None:
        pytest.skip("datasets is missing: Hugging Face sets are NOT tested")
    root = make(tmp_path_factory.mktemp("source") / "set")
    config = DataConfig(dataset=name, root=str(root), kwargs=kwargs, verify=False)
    return load_datasets(config, seed=0)


def host(data: Datasets, workers: int, **plan: Any) -> HostLoader:
    defaults = {"num_samples": len(data.train), "global_batch_size": 12, "seed": 3}
    return HostLoader(
        data.train,
        data.held_out,
        plan=Plan(**(defaults | plan)),
        device=CPU,
        workers=workers,
        prefetch_factor=2,
    )


def refusal(call: Callable[[], object]) -> str:
    # pytest.raises would keep the frame, the frame the loader, and the garbage collector takes
    # workers apart in an order in which they cannot end.
    try:
        call()
    except InputError as error:
        return str(error)
    raise AssertionError("nothing was refused")


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second) > 0
    for (x, y, _), (u, v, _) in zip(first, second, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


@WORKERS
def test_batches_depend_neither_on_workers_nor_on_where_a_run_starts(
    data: Datasets, workers: int
) -> None:
    """Law: global batch i is the same with 0 and 2 workers, from the start and from the middle."""
    alone = take(host(data, 0).stream(0), 8)
    assert_same(take(host(data, workers).stream(0), 8), alone)
    assert_same(take(host(data, workers).stream(3), 5), alone[3:])
    assert_same(take(host(data, workers).stream(5), 3), alone[5:])


def test_ranks_together_see_the_batches_of_one(data: Datasets) -> None:
    """Law: the shares of 3 ranks, one after the other, are the global batch."""
    whole = take(host(data, 0).stream(0), 4)
    shares = [take(host(data, 0, rank=rank, world_size=3).stream(0), 4) for rank in range(3)]
    joined = [
        Batch(torch.cat([b.inputs for b in parts]), torch.cat([b.targets for b in parts]), 0)
        for parts in zip(*shares, strict=True)
    ]
    assert_same(joined, whole)


@WORKERS
def test_evaluation_reads_every_test_sample_once_in_order(data: Datasets, workers: int) -> None:
    loader = host(data, workers)
    for _ in range(2):
        batches = [batch for _, batch in loader.evaluation("test", 5, 0, 1)]
        inputs, targets = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
        assert len(inputs) == len(data.test)
        for index in (0, len(data.test) - 1):
            expected, target = data.test[index]
            assert torch.equal(inputs[index], expected)
            assert int(targets[index]) == int(target)


def test_the_facts_are_those_of_the_samples(data: Datasets) -> None:
    """Law: shape, type and classes a model is built for are what batches have."""
    inputs, targets, _ = take(host(data, 0).stream(0), 1)[0]
    facts = data.facts()
    assert tuple(inputs.shape[1:]) == facts.input_shape
    assert str(inputs.dtype) == f"torch.{facts.dtype}"
    assert targets.dtype == torch.int64
    assert int(targets.max()) < facts.num_classes


@WORKERS
def test_an_unreadable_picture_ends_the_stream_with_its_name_alone(
    workers: int, tmp_path: Path
) -> None:
    """Law: the error of a worker is the message itself, not a traceback with one inside."""
    make_tree(tmp_path)
    path = tmp_path / "train" / CLASSES[0] / "003.png"
    path.write_bytes(path.read_bytes()[:-40])
    config = DataConfig(dataset="image_folder", root=str(tmp_path), kwargs=SMALL)
    loader = host(load_datasets(config, seed=0), workers)
    message = refusal(lambda: take(loader.stream(0), 3))
    assert message.startswith(f"{path} cannot be read as a picture")
    assert "Traceback" not in message


@WORKERS
def test_samples_of_different_shapes_are_refused(workers: int, tmp_path: Path) -> None:
    import io

    files = {}
    for number in range(9):
        out = io.BytesIO()
        np.save(out, np.zeros((2, 3 + number % 2)))
        files |= {f"{number}.npy": out.getvalue(), f"{number}.cls": b"0"}
    for name in ("train.tar", "val.tar"):
        make_shard(tmp_path / name, files)
    config = DataConfig(dataset="webdataset", root=str(tmp_path), kwargs={"inputs": ["npy"]})
    loader = host(load_datasets(config, seed=0), workers, global_batch_size=9)
    message = refusal(lambda: take(loader.stream(0), 1))
    assert message.startswith("inputs of one batch: given 'shapes [(2, 3), (2, 4)]'")
