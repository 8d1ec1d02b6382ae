"""Predictions have the bits of training, for every format; what does not fit is refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from configs.errors import InputError
from data.formats.idx import read_idx
from launch.predict import main
from tests.programs.recorder import RECORDED
from tests.support.data_sets import make_idx
from tests.support.idx_files import write_idx
from tests.support.runs import train_here

SHAPE = (9, 7)


@pytest.fixture(scope="module")
def images(idx_folder: Path) -> np.ndarray[Any, Any]:
    """`(101, 9, 7)` uint8."""
    return read_idx(idx_folder / "test-images-idx3-ubyte")


def predict(run: Path, folder: Path, *arguments: object) -> list[dict[str, Any]]:
    output = folder / "rows.json"
    assert main([str(run), *map(str, arguments), f"--output={output}"]) == 0
    rows: list[dict[str, Any]] = json.loads(output.read_text())
    return rows


def probabilities(rows: Sequence[dict[str, Any]]) -> list[list[float]]:
    return [row["probabilities"] for row in rows]


@pytest.fixture(scope="module")
def expected(trained_run: Path, idx_folder: Path) -> list[list[float]]:
    """Probabilities of the whole test set, from the IDX file."""
    from launch.using.trained import load_trained

    trained = load_trained(trained_run)
    stored = torch.from_numpy(read_idx(idx_folder / "test-images-idx3-ubyte"))[:, None]
    parts = [F.softmax(trained.logits(part).double(), 1) for part in stored.split(40)]
    rows: list[list[float]] = torch.cat(parts).tolist()
    return rows


def test_predictions_have_the_bits_of_the_model_in_training(
    tmp_path: Path, idx_folder: Path
) -> None:
    """Law: what the model said in the last evaluation of training, it says again."""
    run = train_here(
        tmp_path,
        idx_folder,
        "--model.name=tests.programs.recorder:Recorder",
        '--model.kwargs={"hidden": [16], "dropout": 0.2, "batch_norm": true}',
        "--train.ema_decay=0.9",
        "--train.max_steps=20",
    )
    in_training = torch.cat(RECORDED[-3:])
    RECORDED.clear()
    images = idx_folder / "test-images-idx3-ubyte"
    rows = predict(run, tmp_path, images, "--checkpoint=latest", "--trust_code")
    assert torch.equal(torch.cat(RECORDED), in_training)
    RECORDED.clear()
    assert probabilities(rows) == F.softmax(in_training.double(), 1).tolist()
    assert [row["class"] for row in rows] == in_training.argmax(1).tolist()


def test_a_row_says_which_image_which_class_and_how_surely(
    trained_run: Path, tmp_path: Path, images: np.ndarray[Any, Any]
) -> None:
    np.save(tmp_path / "some.npy", images[:5])
    rows = predict(trained_run, tmp_path, tmp_path / "some.npy")
    for index, row in enumerate(rows):
        assert (row["input"], row["index"]) == (str(tmp_path / "some.npy"), index)
        assert row["name"] == str(row["class"])
        assert row["probability"] == max(row["probabilities"])
        assert row["class"] == row["probabilities"].index(row["probability"])
        assert sum(row["probabilities"]) == pytest.approx(1)


@pytest.mark.parametrize("form", ["idx", "gz", "npy", "nchw", "nhwc", "fortran", "big endian"])
def test_every_format_and_order_of_axes_gives_the_same_bits(
    trained_run: Path,
    tmp_path: Path,
    images: np.ndarray[Any, Any],
    expected: list[list[float]],
    form: str,
) -> None:
    path = tmp_path / f"input{'.gz' if form == 'gz' else ''}"  # the name says nothing
    if form in ("idx", "gz"):
        write_idx(path, images)
    else:
        arrays = {
            "npy": images,
            "nchw": images[:, None],
            "nhwc": images[..., None],
            "fortran": np.asfortranarray(images),
            "big endian": images.astype(">u1"),
        }
        with path.open("wb") as file:
            np.save(file, arrays[form])
    assert probabilities(predict(trained_run, tmp_path, path)) == expected


def test_pictures_give_the_bits_of_the_array_they_were_drawn_from(
    trained_run: Path,
    tmp_path: Path,
    images: np.ndarray[Any, Any],
    expected: list[list[float]],
) -> None:
    """Several inputs are one stream of batches; grey, colour, opaque alpha and palette agree."""
    modes = ("L", "RGB", "RGBA", "P")
    paths = []
    for index in range(41):
        picture = Image.fromarray(images[index])
        paths.append(tmp_path / f"{index}.png")
        picture.convert(modes[index % len(modes)]).save(paths[-1])
    rows = predict(trained_run, tmp_path, *paths)
    assert probabilities(rows)[:40] == expected[:40]
    assert np.allclose(probabilities(rows)[40], expected[40])  # alone in its batch
    assert [row["input"] for row in rows] == [str(path) for path in paths]


def test_the_batch_size_changes_no_class(
    trained_run: Path, tmp_path: Path, images: np.ndarray[Any, Any], expected: list[list[float]]
) -> None:
    np.save(tmp_path / "all.npy", images)
    for size in (1, 33, 1000):
        rows = predict(trained_run, tmp_path, tmp_path / "all.npy", f"--batch-size={size}")
        assert np.allclose(probabilities(rows), expected, atol=1e-6)
        assert [row["index"] for row in rows] == list(range(101))


def test_a_large_array_is_read_a_batch_at_a_time(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sparse file of many GiB: whoever read it whole would not come back."""
    from data.formats.images import open_images
    from data.formats.reading import Reading
    from launch.using.trained import load_trained

    count = 2**30
    with (tmp_path / "huge.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *SHAPE)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + count * SHAPE[0] * SHAPE[1])
    reading = Reading(facts=load_trained(trained_run).facts)
    opened = open_images(tmp_path / "huge.npy", reading)
    assert len(opened) == count
    assert opened.read(count - 2, count).shape == (2, 1, *SHAPE)


def test_inverting_and_resizing_are_what_they_say(
    trained_run: Path, tmp_path: Path, images: np.ndarray[Any, Any]
) -> None:
    np.save(tmp_path / "plain.npy", images[:5])
    np.save(tmp_path / "dark.npy", 255 - images[:5])
    np.save(tmp_path / "big.npy", images[:5].repeat(4, 1).repeat(4, 2))
    plain = predict(trained_run, tmp_path, tmp_path / "plain.npy")
    dark = predict(trained_run, tmp_path, tmp_path / "dark.npy", "--invert")
    assert probabilities(dark) == probabilities(plain)
    unmoved = predict(trained_run, tmp_path, tmp_path / "plain.npy", "--resize")
    assert probabilities(unmoved) == probabilities(plain)
    with pytest.raises(InputError, match=r"given \(36, 28\), expected \(9, 7\).*--resize"):
        predict(trained_run, tmp_path, tmp_path / "big.npy")
    for row, other in zip(
        plain, predict(trained_run, tmp_path, tmp_path / "big.npy", "--resize"), strict=True
    ):
        assert row["class"] == other["class"]


def test_a_picture_of_another_size_is_resized_only_if_asked(
    trained_run: Path, tmp_path: Path, images: np.ndarray[Any, Any], expected: list[list[float]]
) -> None:
    Image.fromarray(images[0]).resize((70, 90), Image.Resampling.BICUBIC).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"given \(90, 70\), expected \(9, 7\)"):
        predict(trained_run, tmp_path, tmp_path / "a.png")
    (row,) = predict(trained_run, tmp_path, tmp_path / "a.png", "--resize")
    assert row["class"] == int(np.argmax(expected[0]))


def test_csv_json_and_json_lines_say_the_same(
    trained_run: Path,
    tmp_path: Path,
    images: np.ndarray[Any, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    np.save(tmp_path / "some.npy", images[:5])
    rows = predict(trained_run, tmp_path, tmp_path / "some.npy")
    command = [str(trained_run), str(tmp_path / "some.npy")]
    assert main([*command, "--as=jsonl"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    assert main(command) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    for row, cells in zip(rows, table, strict=True):
        assert [float(cells[f"p_{name}"]) for name in "01234"] == row["probabilities"]
        assert int(cells["class"]) == row["class"]
        assert float(cells["probability"]) == row["probability"]


@pytest.mark.parametrize("form", ["npy", "idx", "png"])
@pytest.mark.parametrize("told", [True, False])
def test_standard_input_in_any_format(
    trained_run: Path,
    tmp_path: Path,
    images: np.ndarray[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    told: bool,
) -> None:
    """Its format is told by its first bytes, or by an option."""
    path = tmp_path / "input"
    if form == "npy":
        with path.open("wb") as file:
            np.save(file, images[:1])
    elif form == "idx":
        write_idx(path, images[:1])
        path.write_bytes(gzip.compress(path.read_bytes()))
    else:
        Image.fromarray(images[0]).save(path, "PNG")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    (row,) = predict(trained_run, tmp_path, "-", *[f"--format={form}"] * told)
    (same,) = predict(trained_run, tmp_path, path)
    assert row == same | {"input": "-"}


def save(folder: Path, array: np.ndarray[Any, Any]) -> Path:
    np.save(folder / "input.npy", array)
    return folder / "input.npy"


def picture(folder: Path, image: Image.Image, **options: Any) -> Path:
    image.save(folder / "input.png", **options)
    return folder / "input.png"


def written(folder: Path, content: bytes) -> Path:
    (folder / "input").write_bytes(content)
    return folder / "input"


GREY = Image.new("L", (7, 9), 128)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7), np.uint8))
BAD_INPUTS = {
    "missing": (lambda folder: folder / "nothing.png", "No such file"),
    "a folder": (lambda folder: folder, "Is a directory"),
    "empty": (lambda folder: written(folder, b""), "is not an image"),
    "text": (lambda folder: written(folder, b"hello"), "is not an image"),
    "truncated picture": (
        lambda folder: written(folder, picture(folder, NOISE).read_bytes()[:80]),
        "cannot be read as a picture",
    ),
    "truncated array": (
        lambda folder: written(folder, save(folder, np.zeros((3, 9, 7), "u1")).read_bytes()[:-9]),
        "cannot be read as NPY",
    ),
    "truncated IDX": (lambda folder: written(folder, b"\0\0\x08\x03\0\0"), "truncated"),
    "objects": (lambda folder: save(folder, np.array([{}])), "cannot be read as NPY"),
    "no images": (lambda folder: save(folder, np.zeros((0, 9, 7), "u1")), "one image|as NPY"),
    "floats": (
        lambda folder: save(folder, np.zeros((2, 9, 7))),
        "given 'float64', expected uint8, as in training",
    ),
    "another size": (
        lambda folder: save(folder, np.zeros((2, 9, 8), "u1")),
        r"height and width: given \(9, 8\), expected \(9, 7\)",
    ),
    "colours": (lambda folder: save(folder, np.zeros((2, 3, 9, 7), "u1")), r"expected \(N, 1, 9"),
    "flat": (lambda folder: save(folder, np.zeros(63, "u1")), r"given \(63,\), expected \(N, 1"),
    "transparent": (
        lambda folder: picture(folder, Image.new("RGBA", (7, 9), (0, 0, 0, 9))),
        "transparent pixels",
    ),
    "sixteen bits": (
        lambda folder: picture(folder, Image.fromarray(np.zeros((9, 7), np.uint16))),
        "8 bits per channel",
    ),
    "animation": (
        lambda folder: picture(
            folder, GREY, save_all=True, append_images=[Image.new("L", (7, 9), 3)]
        ),
        "given '2 frames'",
    ),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_an_input_that_does_not_fit_is_refused_before_anything_is_written(
    trained_run: Path, tmp_path: Path, images: np.ndarray[Any, Any], name: str
) -> None:
    """Even after a good one: the output appears whole or not at all."""
    np.save(tmp_path / "good.npy", images[:2])
    make, message = BAD_INPUTS[name]
    path = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        predict(trained_run, tmp_path, tmp_path / "good.npy", path)
    assert sorted(tmp_path.iterdir()) == before


def test_a_colour_model_takes_channels_first_and_last(tmp_path: Path) -> None:
    """Law: a picture, and its array in either order, are the same image."""
    data = make_idx(tmp_path / "idx", shape=(6, 5, 3), num_train=40, num_test=4)
    run = train_here(tmp_path, data, "--train.max_steps=2")
    stored = read_idx(data / "test-images-idx3-ubyte")  # (4, 6, 5, 3)
    np.save(tmp_path / "last.npy", stored)
    np.save(tmp_path / "first.npy", stored.transpose(0, 3, 1, 2))
    pictures = [tmp_path / f"{index}.png" for index in range(4)]
    for path, array in zip(pictures, stored, strict=True):
        Image.fromarray(array).save(path)
    first, last, drawn = (
        probabilities(predict(run, tmp_path, *paths))
        for paths in ([tmp_path / "first.npy"], [tmp_path / "last.npy"], pictures)
    )
    assert first == last == drawn
    assert len({row[0] for row in first}) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output=rows.xml"], "expected a name that ends in .csv, .json, .jsonl"),
        (["--output=/no/such/folder/rows.csv"], "expected a file in a folder that exists"),
        (["--data.root=x"], "expected a key of parallel, precision"),
        (["-", "-"], "standard input once"),
    ],
)
def test_bad_arguments_give_one_message(
    trained_run: Path, idx_folder: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        main([str(trained_run), str(idx_folder / "test-images-idx3-ubyte"), *arguments])


def test_a_missing_package_names_the_extra(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = picture(tmp_path, GREY)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(InputError, match=r"PIL.* is not installed .*\.\[images\]"):
        predict(trained_run, tmp_path, path)
