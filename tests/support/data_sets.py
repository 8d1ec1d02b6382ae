"""Small data sets of every kind, made by the tests; classes differ in colour and can be learned."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.support.idx_files import write_idx

COLOURS = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220]])
CLASSES = ("blue_jay", "cardinal", "parrot")


def picture(label: int, number: int, height: int = 20, width: int = 26) -> NDArray[np.uint8]:
    """Noise around the colour of a class, `(height, width, 3)`."""
    noise = np.random.default_rng([label, number]).integers(-30, 30, (height, width, 3))
    return (COLOURS[label] + noise).clip(0, 255).astype(np.uint8)


def encoded(pixels: NDArray[np.uint8], ending: str = "png") -> bytes:
    """The bytes of a picture file."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, {"jpg": "JPEG", "png": "PNG"}[ending], quality=95)
    return out.getvalue()


def make_idx(
    folder: Path,
    *,
    num_train: int = 509,
    num_test: int = 101,
    shape: tuple[int, ...] = (9, 7),
    num_classes: int = 5,
    suffix: str = "",
) -> Path:
    """Four IDX files of odd sizes whose classes can be learned."""
    random = np.random.default_rng(0)
    patterns = random.integers(0, 200, (num_classes, *shape))
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", num_train), ("test", num_test)):
        labels = random.integers(0, num_classes, count).astype(np.uint8)
        noise = random.integers(0, 56, (count, *shape))
        images = (patterns[labels] + noise).astype(np.uint8)
        write_idx(folder / f"{split}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte{suffix}", labels)
    return folder


def make_tree(
    folder: Path, *, num_train: int = 31, num_test: int = 11, ending: str = "png"
) -> Path:
    """train/CLASS/N.png and val/CLASS/N.png, sizes mixed, classes in turn."""
    for split, count in (("train", num_train), ("val", num_test)):
        for number in range(count):
            label = number % len(CLASSES)
            path = folder / split / CLASSES[label] / f"{number:03d}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = (20, 26) if number % 2 else (31, 17)
            path.write_bytes(encoded(picture(label, number, *size), ending))
    return folder


def make_arrays(folder: Path, **given: NDArray[Any]) -> Path:
    """The four .npy files, of 53 and 19 samples `(3, 6, 5)` unless given."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 53), ("test", 19)):
        labels = np.arange(count) % len(CLASSES)
        pixels = np.stack([picture(int(label), n, 6, 5) for n, label in enumerate(labels)])
        defaults = {"inputs": pixels.transpose(0, 3, 1, 2), "targets": labels.astype(np.int32)}
        for kind, default in defaults.items():
            np.save(folder / f"{split}_{kind}.npy", given.get(f"{split}_{kind}", default))
    return folder


def make_shard(path: Path, files: dict[str, bytes]) -> Path:
    """A tar of these files, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def make_shards(folder: Path) -> Path:
    """Three training shards of 13 pictures and one test shard of 11."""
    for name, count in (("train-0", 13), ("train-1", 13), ("train-2", 13), ("val-0", 11)):
        files: dict[str, bytes] = {}
        for number in range(count):
            label = number % len(CLASSES)
            pixels = picture(label, number + 100 * len(name))
            files[f"{number:04d}.jpg"] = encoded(pixels, "jpg")
            files[f"{number:04d}.cls"] = str(label).encode()
            files[f"{number:04d}.json"] = b"{}"
        make_shard(folder / f"{name}.tar", files)
    return folder


def make_cifar(folder: Path, label_bytes: int = 1, count: int = 24) -> Path:
    """Files of CIFAR's binary version with few records each."""
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
    names = names if label_bytes == 1 else ["train.bin", "test.bin"]
    folder.mkdir(parents=True, exist_ok=True)
    for position, name in enumerate(names):
        content = b""
        for number in range(count):
            label = number % len(CLASSES)
            pixels = picture(label, number + 1000 * position, 32, 32).transpose(2, 0, 1)
            content += bytes([label] * label_bytes) + pixels.tobytes()
        (folder / name).write_bytes(content)
    return folder


def make_saved(folder: Path, **columns: Any) -> Path:
    """What save_to_disk writes: splits train (31) and test (11) of pictures and their classes."""
    import datasets

    def split(count: int, shift: int) -> Any:
        labels = [number % len(CLASSES) for number in range(count)]
        cells = [
            {"bytes": encoded(picture(label, number + shift)), "path": None}
            for number, label in enumerate(labels)
        ]
        features = datasets.Features(
            image=datasets.Image(), label=datasets.ClassLabel(names=list(CLASSES))
        )
        return datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)

    datasets.DatasetDict(train=split(31, 0), test=split(11, 500)).save_to_disk(str(folder))
    return folder


class Jitter:
    """A transform of a user's own: crops at random and changes the brightness at random."""

    def __init__(self, size: int = 12) -> None:
        self.size = size

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        top, left = (int(torch.randint(side - self.size + 1, ())) for side in image.shape[1:])
        global_batch = image[:, top : top + self.size, left : left + self.size]
        return (global_batch * (0.5 + 0.5 * torch.rand(()))).to(torch.uint8)


def to_float(image: torch.Tensor) -> torch.Tensor:
    return image / 255


JITTER = [{"tests.support.data_sets:Jitter": {"size": 11}}]
