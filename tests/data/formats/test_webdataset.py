"""WebDataset shards: read by position as WebDataset reads them in order; broken ones are named."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.schema import DataConfig
from data.datasets import Datasets, load_datasets
from data.formats.webdataset import expand
from tests.support.data_sets import encoded, make_shard, make_shards, picture
from tests.support.loaded import refusal_of


def load(root: Path, **kwargs: Any) -> Datasets:
    config = DataConfig(dataset="webdataset", root=str(root), kwargs=kwargs)
    return load_datasets(config, seed=0)


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def arrays(folder: Path, **files: bytes) -> Path:
    """One training and one test shard of three .npy samples, with further files in the first."""
    content = {}
    for number in range(3):
        content[f"{number}.npy"] = npy(np.full((2, 3), number, np.float32))
        content[f"{number}.cls"] = str(number).encode()
    make_shard(folder / "test.tar", content)
    more = {name.replace("__", "."): value for name, value in files.items()}
    make_shard(folder / "train.tar", content | more)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"))


def test_samples_are_those_of_the_webdataset_library_in_its_order(shards: Path) -> None:
    """Law: what the library streams, shard after shard, is what positions give."""
    library = pytest.importorskip(
        "webdataset", reason="webdataset is missing: NOT compared with it"
    )
    urls = [str(path) for path in sorted(shards.glob("train-*.tar"))]
    streamed = list(
        library.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("jpg", "cls")
    )
    data = load(shards, size=(20, 26))
    assert len(data.train) == len(streamed) == 39
    for index, (image, label) in enumerate(streamed):
        pixels, target = data.train[index]
        np.testing.assert_array_equal(pixels.numpy(), image.transpose(2, 0, 1))
        assert target == label
    assert (len(data.test), data.num_classes, data.input_shape) == (11, 3, (3, 20, 26))


def test_shards_that_the_library_wrote_are_read(tmp_path: Path) -> None:
    library = pytest.importorskip(
        "webdataset", reason="webdataset is missing: NOT compared with it"
    )
    for split, count in (("train", 7), ("val", 3)):
        with library.ShardWriter(str(tmp_path / f"{split}-%02d.tar"), maxcount=4, verbose=0) as out:
            for number in range(count):
                out.write(
                    {
                        "__key__": f"{number:03d}",
                        "png": picture(number % 3, number),
                        "cls": number % 3,
                    }
                )
    data = load(tmp_path, size=(20, 26))
    assert [data.train[index][1] for index in range(7)] == [number % 3 for number in range(7)]
    np.testing.assert_array_equal(data.train[5][0].numpy(), picture(2, 5).transpose(2, 0, 1))


def test_arrays_are_taken_as_they_are(tmp_path: Path) -> None:
    data = load(arrays(tmp_path), inputs=["npy"], classes=["a", "b", "c", "d"])
    assert (data.input_shape, data.num_classes, data.facts().dtype) == ((2, 3), 4, "float32")
    assert (data.mean, data.std, data.scale) == ((0.0,), (1.0,), 1.0)
    assert torch.equal(data.test[2][0], torch.full((2, 3), 2.0))
    assert "Did you mean 'inputs'?" in refusal_of(lambda: load(tmp_path, input=["npy"]))


def test_samples_in_folders_of_a_shard_keep_apart(tmp_path: Path) -> None:
    files = {}
    for folder, label in (("a", b"0"), ("b/c", b" 1\n")):
        files |= {f"{folder}/x.png": encoded(picture(0, 0)), f"{folder}/x.cls": label}
    for name in ("train.tar", "test.tar"):
        make_shard(tmp_path / name, files)
    data = load(tmp_path, size=8)
    assert [data.train[index][1] for index in range(2)] == [0, 1]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"9__npy": npy(np.zeros((2, 3)))}, "train.tar: sample 9: given 'one file only'"),
        ({"9__cls": b"1"}, "train.tar: sample 9: given 'one file only'"),
        ({"9__npy": b"x", "9__cls": b"one"}, "train.tar: 9.cls: given b'one'"),
        ({"9__npy": b"x", "9__cls": b"-1"}, "train.tar: 9.cls: given b'-1'"),
    ],
)
def test_a_sample_that_lacks_a_file_or_a_number_is_named(
    files: dict[str, bytes], said: str, tmp_path: Path
) -> None:
    assert said in refusal_of(lambda: load(arrays(tmp_path, **files), inputs=["npy"]))


@pytest.mark.parametrize(
    "content",
    [b"no array", npy(np.zeros((2, 3)))[:-8], npy(np.array([None]))],
    ids=["other bytes", "cut", "objects"],
)
def test_an_array_that_cannot_be_read_is_named(content: bytes, tmp_path: Path) -> None:
    data = load(arrays(tmp_path, **{"9__npy": content, "9__cls": b"1"}), inputs=["npy"])
    assert f"{tmp_path / 'train.tar'}: 9.npy cannot be read" in refusal_of(lambda: data.train[3])


def test_a_broken_picture_is_named_with_its_shard(shards: Path, tmp_path: Path) -> None:
    files = {"7.jpg": encoded(picture(0, 0), "jpg")[:-99], "7.cls": b"1"}
    for name in ("train.tar", "val.tar"):
        make_shard(tmp_path / name, files)
    message = refusal_of(lambda: load(tmp_path))
    assert message.startswith(f"{tmp_path / 'train.tar'}: 7.jpg cannot be read as a picture")


def test_truncated_compressed_and_foreign_shards_are_refused_by_name(
    shards: Path, tmp_path: Path
) -> None:
    arrays(tmp_path)
    path = tmp_path / "train.tar"
    whole = path.read_bytes()
    compressed = io.BytesIO()
    with tarfile.open(fileobj=compressed, mode="w:gz") as tar:
        tar.add(tmp_path / "test.tar")
    # The last of 12 members begins at byte 5 * 1024 of headers and data.
    for content in (whole[: 5 * 1024 + 512], whole[:700], b"", b"x" * 2000, compressed.getvalue()):
        path.write_bytes(content)
        message = refusal_of(lambda: load(tmp_path, inputs=["npy"]))
        assert message.startswith(str(path)), len(content)


def test_streams_missing_shards_and_shards_in_both_parts_are_refused(shards: Path) -> None:
    config = DataConfig(dataset="webdataset", root="https://host/shards")
    message = refusal_of(lambda: load_datasets(config, seed=0))
    assert "files on this machine" in message
    assert "no order to continue from" in message
    assert "data.kwargs.train" in refusal_of(lambda: load(shards, train="pipe:cat x.tar"))
    assert "expected no*.tar" in refusal_of(lambda: load(shards, train="no*.tar"))
    message = refusal_of(lambda: load(shards, test="train-1.tar"))
    assert "given 'train-1.tar', expected it in train or in test only" in message
    assert "data.root: expected" in refusal_of(
        lambda: load_datasets(DataConfig(dataset="webdataset"), seed=0)
    )


def test_braces_stand_for_each_of_their_numbers_or_names(shards: Path) -> None:
    """Law: as the library writes shards; what is not there is left out."""
    assert len(load(shards, train="train-{0..1}.tar").train) == 26
    assert len(load(shards, train="{train-0,train-2,train-9}.tar").train) == 26
    assert expand("a{00..02}b{x,y}") == ["a00bx", "a00by", "a01bx", "a01by", "a02bx", "a02by"]


@pytest.mark.parametrize(
    ("kwargs", "key"),
    [
        ({"inputs": []}, "data.kwargs.inputs"),
        ({"inputs": ["npy", "jpg"]}, "npy alone"),
        ({"inputs": ["npy"], "augment": ["x"]}, "data.kwargs.augment"),
        ({"num_classes": 2}, "more than the highest target 2"),
        ({"num_classes": 0}, "1 or more"),
        ({"target": "cls2"}, "one file only"),
        ({"inputs": ["tif"]}, "one file only"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    kwargs: dict[str, Any], key: str, shards: Path
) -> None:
    assert key in refusal_of(lambda: load(shards, **kwargs))


@pytest.mark.parametrize(
    ("more", "given"),
    [
        ({"0__png": b"", "0__jpg": b""}, "0.png and 0.jpg"),
        ({"1__a__cls": b"1", "1__cls": b"1"}, "1.cls"),
    ],
)
def test_a_key_that_occurs_twice_is_refused_with_shard_and_key(
    tmp_path: Path, more: dict[str, bytes], given: str
) -> None:
    """Law: no sample replaces another in silence."""
    make_shard(tmp_path / "test.tar", {"0.jpg": b"", "0.cls": b"0"})
    content = {name.replace("__", "."): value for name, value in more.items()}
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w") as tar:
        for name, value in [*content.items(), *([("1.cls", b"0")] if "1.cls" in content else [])]:
            member = tarfile.TarInfo(name)
            member.size = len(value)
            tar.addfile(member, io.BytesIO(value))
    found = refusal_of(lambda: load(tmp_path))
    assert f"{path}: sample" in found
    assert given in found
    assert "expected one input and one target (cls)" in found
