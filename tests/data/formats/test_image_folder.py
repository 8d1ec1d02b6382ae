"""Trees of pictures: what is found, what a sample is, and what is refused by name."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from configs.schema import DataConfig
from data.datasets import Datasets, load_datasets
from data.formats.decode import PictureOptions, PictureReader
from tests.support.data_sets import CLASSES, JITTER, encoded, make_tree, picture
from tests.support.loaded import refusal_of


def load(root: Path, **kwargs: Any) -> Datasets:
    config = DataConfig(dataset="image_folder", root=str(root), kwargs={"size": 16} | kwargs)
    return load_datasets(config, seed=0)


def sample(content: bytes, **options: Any) -> torch.Tensor:
    return PictureReader(PictureOptions(**options), training=False)(content, "x")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """31 training and 11 test pictures in three classes; not to be written to."""
    return make_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def copy(tree: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tree, tmp_path / "tree"))


# -- what is found -------------------------------------------------------------------------------


def test_a_tree_gives_its_classes_and_every_picture_once(tree: Path) -> None:
    data = load(tree)
    assert (len(data.train), len(data.test)) == (31, 11)
    assert (data.classes, data.num_classes) == (CLASSES, 3)
    assert (data.input_shape, data.scale, data.facts().dtype) == ((3, 16, 16), 255.0, "uint8")
    for dataset in (data.train, data.test):
        labels = [dataset[index][1] for index in range(len(dataset))]
        assert labels == sorted(labels)
        for index, label in enumerate(labels):
            image = dataset[index][0]
            assert (image.shape, image.dtype) == ((3, 16, 16), torch.uint8)
            assert int(image.double().mean((1, 2)).argmax()) == label


def test_the_order_depends_on_names_only(tree: Path, tmp_path: Path) -> None:
    """Law: two copies of a tree, made in different orders, are the same data set."""
    files = sorted(path.relative_to(tree) for path in tree.rglob("*.png"))
    for path in reversed(files):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tree / path, tmp_path / path)
    first, second = load(tree).train, load(tmp_path).train
    assert all(torch.equal(first[i][0], second[i][0]) for i in range(len(first)))


def test_subfolders_links_endings_and_other_files(copy: Path) -> None:
    """Pictures count by their endings, in subfolders and behind links too; nothing else does."""
    place = copy / "train" / CLASSES[0]
    (place / "deeper").mkdir()
    (place / "deeper" / "a.JPG").write_bytes(encoded(picture(0, 1), "jpg"))
    outside = copy / "outside"
    outside.mkdir()
    (outside / "b.jpeg").write_bytes(encoded(picture(0, 2), "jpg"))
    os.symlink(outside, place / "link")
    for name in ("notes.txt", ".hidden.png", "._x.jpg"):
        (place / name).write_bytes(b"")
    (copy / "train" / "README.md").touch()
    assert len(load(copy).train) == 33


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test", "elsewhere"])
def test_the_test_folder_goes_by_several_names(name: str, copy: Path) -> None:
    (copy / "val").rename(copy / name)
    if name == "elsewhere":
        message = refusal_of(lambda: load(copy))
        assert "given 'elsewhere, train'" in message
        assert "data.kwargs.test" in message
    assert len(load(copy, **({"test": name} if name == "elsewhere" else {})).test) == 11


# -- what a sample is ----------------------------------------------------------------------------


def test_a_picture_of_the_size_is_taken_as_it_is() -> None:
    pixels = picture(1, 5, 16, 18)
    expected = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    assert torch.equal(sample(encoded(pixels), size=(16, 18)), expected)


@pytest.mark.parametrize(("size", "crop"), [(8, 1.0), ((10, 7), 1.0), (14, 0.875), (40, 0.5)])
@pytest.mark.parametrize("shape", [(20, 26), (31, 17), (16, 16), (9, 60)])
def test_others_are_resized_with_their_aspect_and_cropped_in_the_middle(
    size: Any, crop: float, shape: tuple[int, int]
) -> None:
    """Law: the window of size / crop that just fits, then its centre; as torchvision's Resize and
    CenterCrop do for a square."""
    height, width = (size, size) if isinstance(size, int) else size
    pixels = picture(2, 3, *shape)
    found = sample(encoded(pixels), size=size, crop=crop)
    assert found.shape == (3, height, width)
    scale = max(height / crop / shape[0], width / crop / shape[1])
    resized = max(round(shape[0] * scale), height), max(round(shape[1] * scale), width)
    whole = F.interpolate(
        torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None].float(),
        size=resized,
        mode="bilinear",
        antialias=True,
    )[0]
    top, left = (resized[0] - height) // 2, (resized[1] - width) // 2
    expected = whole[:, top : top + height, left : left + width]
    assert (found.float() - expected).abs().max() < 1.5, "rounded once along each axis"


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4), ("P", 3)])
def test_every_mode_becomes_the_channels_asked_for(mode: str, channels: int) -> None:
    from PIL import Image

    out = io.BytesIO()
    original = Image.fromarray(picture(0, 1)).convert(mode)
    original.save(out, "PNG")
    expected = np.array(original.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
    found = sample(out.getvalue(), size=(20, 26), channels=channels)
    planes = expected[None] if channels == 1 else expected.transpose(2, 0, 1)
    np.testing.assert_array_equal(found.numpy(), planes)


def test_mean_and_deviation_are_imagenets_unless_given(tree: Path) -> None:
    assert load(tree).mean == (0.485, 0.456, 0.406)
    assert load(tree, channels=1).mean == (0.5,)
    given = load(tree, mean=[0.1, 0.2, 0.3], std=[1, 2, 3])
    assert (given.mean, given.std) == ((0.1, 0.2, 0.3), (1, 2, 3))


def test_a_data_set_can_be_sent_to_a_worker_that_is_not_forked(tree: Path) -> None:
    data = load(tree, augment=JITTER)
    again = pickle.loads(pickle.dumps(data.test))
    assert torch.equal(again[3][0], data.test[3][0])


# -- transforms ----------------------------------------------------------------------------------


def test_transforms_apply_to_training_pictures_only_and_draw_from_the_global_generator(
    tree: Path,
) -> None:
    plain, data = load(tree), load(tree, augment=JITTER)
    torch.manual_seed(1)
    first = data.train[0][0]
    torch.manual_seed(1)
    assert torch.equal(data.train[0][0], first)
    assert not torch.equal(data.train[0][0], first)
    assert first.shape == (3, 16, 16)
    assert torch.equal(data.test[0][0], plain.test[0][0])


@pytest.mark.parametrize(
    ("augment", "said"),
    [
        (["tests.support.data_sets:to_float"], "uint8 images"),
        (["tests.support.data_sets:Missing"], "an attribute 'Missing'"),
        ([{"tests.support.data_sets:Jitter": {"sise": 3}}], "arguments of Jitter"),
        ([{"tests.support.data_sets:to_float": {"x": 3}}], "a list of transforms"),
        (["tests.support.data_sets:JITTER"], "a list of transforms"),
        ([["a", "b"]], "a list of transforms"),
        ([{"a": {}, "b": {}}], "a list of transforms"),
        ("tests.support.data_sets:Jitter", "a list"),
    ],
)
def test_a_wrong_transform_is_refused_before_a_step(augment: Any, said: str, tree: Path) -> None:
    message = refusal_of(lambda: load(tree, augment=augment).train[0])
    assert message.startswith("data.kwargs.augment")
    assert said in message


def torchvision() -> Any:
    """torchvision, if there is one that this torch can load."""
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed: transforms by name are NOT tested")
    try:
        from torchvision.transforms import v2
    except RuntimeError as error:
        pytest.skip(f"torchvision does not fit torch: transforms by name are NOT tested ({error})")
    return v2


def test_transforms_of_torchvision_go_by_their_names(tree: Path) -> None:
    """Law: the same numbers as torchvision's own objects under the same seed."""
    v2 = torchvision()
    augment = [
        {"RandomResizedCrop": {"size": 16, "scale": [0.3, 1.0]}},
        "RandomHorizontalFlip",
        {"TrivialAugmentWide": {}},
        {"ColorJitter": {"brightness": 0.3}},
    ]
    train = load(tree, augment=augment).train
    torch.manual_seed(7)
    found = train[5][0]
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(16, scale=(0.3, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.TrivialAugmentWide(),
            v2.ColorJitter(brightness=0.3),
        ]
    )
    path = sorted((tree / "train" / CLASSES[0]).iterdir())[5]
    from PIL import Image

    pixels = torch.from_numpy(np.array(Image.open(path)).transpose(2, 0, 1).copy())
    torch.manual_seed(7)
    assert torch.equal(found, transform(pixels))
    message = refusal_of(lambda: load(tree, augment=["RandomHorizontalFlop"]))
    assert "Did you mean 'RandomHorizontalFlip'?" in message
    assert "data.kwargs.augment" in refusal_of(lambda: load(tree, augment=["Resize"]))


def test_a_torchvision_that_is_missing_or_does_not_fit_is_refused_with_what_to_do(
    tree: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator x does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    message = refusal_of(lambda: load(tree, augment=["RandomHorizontalFlip"]))
    assert "torchvision does not fit torch" in message
    assert "--index-url" in message
    (package / "__init__.py").write_text("raise ModuleNotFoundError(name='torchvision')")
    message = refusal_of(lambda: load(tree, augment=["RandomHorizontalFlip"]))
    assert "the extra `vision`" in message


# -- refused -------------------------------------------------------------------------------------


def test_classes_must_be_the_same_in_both_parts(copy: Path) -> None:
    (copy / "val" / CLASSES[2]).rename(copy / "val" / "parott")
    message = refusal_of(lambda: load(copy))
    assert "only in train: parrot; only in val: parott" in message
    (copy / "val" / "parott").rename(copy / "val" / CLASSES[2])
    for path in (copy / "val" / CLASSES[2]).iterdir():
        path.unlink()
    assert load(copy).num_classes == 3, "an empty folder in the test part is a class"
    for path in (copy / "train" / CLASSES[2]).iterdir():
        path.unlink()
    assert str(copy / "train" / CLASSES[2]) in refusal_of(lambda: load(copy))


def test_a_missing_root_and_missing_parts_are_refused(tree: Path, tmp_path: Path) -> None:
    config = DataConfig(dataset="image_folder")
    assert refusal_of(lambda: load_datasets(config, seed=0)).startswith("data.root: expected")
    assert refusal_of(lambda: load(tmp_path / "no")).startswith("data.root: given")
    assert "given 'none', expected train" in refusal_of(lambda: load(tmp_path))
    assert "given 'train, val'" in refusal_of(lambda: load(tree, train="trian"))


GIF = (
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00"
    + b"!\xf9\x04\x00\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00" * 2
    + b";"
)


def transparent() -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (encoded(picture(0, 0, 99, 99), "jpg")[:-300], "cannot be read as a picture"),
        (encoded(picture(0, 0, 99, 99))[:-300], "cannot be read as a picture"),
        (b"", "is not an image"),
        (b"<html>", "a web page (HTML)"),
        (transparent(), "transparent pixels"),
        (GIF, "2 frames"),
    ],
    ids=["cut JPEG", "cut PNG", "empty", "web page", "transparent", "film"],
)
def test_a_picture_that_cannot_be_used_is_named(content: bytes, said: str, copy: Path) -> None:
    """Law: one clear error that begins with the path of the file."""
    path = copy / "train" / CLASSES[1] / "001.png"
    path.write_bytes(content)
    train = load(copy).train
    message = refusal_of(lambda: [train[index] for index in range(len(train))])
    assert message.startswith(str(path))
    assert said in message


@pytest.mark.parametrize(
    ("kwargs", "key"),
    [
        ({"size": 0}, "data.kwargs.size"),
        ({"size": [8, 8, 8]}, "data.kwargs.size"),
        ({"size": "big"}, "data.kwargs.size: given 'big', expected a whole number or a list"),
        ({"size": True}, "data.kwargs.size"),
        ({"crop": 0.0}, "data.kwargs.crop"),
        ({"crop": 1.1}, "data.kwargs.crop"),
        ({"channels": 2}, "data.kwargs.channels"),
        ({"mean": [0.5, 0.5], "std": [1.0]}, "data.kwargs.mean"),
        ({"mean": [0.5]}, "data.kwargs.mean"),
        ({"mean": [0.5], "std": [0.0]}, "data.kwargs.std"),
        ({"tset": "x"}, "Did you mean 'test'?"),
    ],
)
def test_options_no_tree_could_have_are_refused(
    kwargs: dict[str, Any], key: str, tree: Path
) -> None:
    assert key in refusal_of(lambda: load(tree, **kwargs))
