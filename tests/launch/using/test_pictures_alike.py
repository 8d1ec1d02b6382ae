"""A picture is the same input to training, evaluation and prediction, whatever its size."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from configs.errors import InputError
from configs.schema import DataConfig
from data.datasets import load_datasets
from data.facts import InputFacts, PictureFit
from data.formats.images import open_images
from data.formats.reading import Reading
from launch import evaluate, predict
from launch.using.exporting import export
from launch.using.trained import load_trained
from tests.support.data_sets import (
    CLASSES,
    JITTER,
    encoded,
    make_arrays,
    make_saved,
    make_shards,
    make_tree,
    picture,
)
from tests.support.runs import train_here

SIDES = st.integers(1, 40)
PICTURES = st.lists(
    st.tuples(SIDES, SIDES, st.sampled_from(["L", "RGB", "P", "CMYK", "1"]), st.integers(0, 999)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    pictures=PICTURES,
    size=st.tuples(SIDES, SIDES),
    crop=st.floats(0.3, 1.0),
    channels=st.sampled_from([1, 3]),
)
@example(pictures=[(2, 2, "L", 0)], size=(1, 1), crop=1.0, channels=3)  # torch's kernel fails
def test_what_predict_reads_is_what_evaluation_reads(
    pictures: list[tuple[int, int, str, int]],
    size: tuple[int, int],
    crop: float,
    channels: int,
) -> None:
    """Law: to the bit, for every size, mode, crop and number of channels; also after JSON."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("train", "test"):
            place = Path(folder) / part / "a"
            place.mkdir(parents=True)
            for number, (height, width, mode, seed) in enumerate(pictures):
                noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
                image = Image.fromarray(noise.astype(np.uint8)).convert(mode)
                image.save(place / f"{number}.tif")
        kwargs = {"size": list(size), "crop": crop, "channels": channels}
        config = DataConfig(dataset="image_folder", root=folder, kwargs=kwargs)
        data = load_datasets(config, seed=0)
        facts = InputFacts.from_json(json.loads(json.dumps(data.facts().to_json())), "model.json")
        assert facts == data.facts()
        reading = Reading(facts=facts)
        for number in range(len(pictures)):
            path = Path(folder) / "test" / "a" / f"{number}.tif"
            read = open_images(path, reading).read(0, 1)[0]
            assert torch.equal(read, data.test[number][0])


@pytest.mark.parametrize(("split", "folder"), [("test", "val"), ("train", "train")])
def test_predictions_of_a_folder_are_as_often_right_as_its_evaluation(
    split: str, folder: str, tmp_path: Path
) -> None:
    """Law: without an option, on test files and training files alike."""
    root = make_tree(tmp_path / "set", num_train=40, num_test=30)
    kwargs = json.dumps({"size": [9, 14], "crop": 0.6, "augment": JITTER})
    options = ("--data.dataset=image_folder", f"--data.kwargs={kwargs}")
    model = "--model.kwargs={hidden: [8]}"
    run = train_here(tmp_path, root, *options, model, "--train.epochs=1", "--optimizer.lr=0.0005")
    assert evaluate.main([str(run), "--mistakes=0", "--trust_code", f"--split={split}"]) == 0
    found = json.loads((run / "evaluation.json").read_text())
    confusion = np.zeros((3, 3), int)
    for label, name in enumerate(CLASSES):
        files = sorted(map(str, (root / folder / name).iterdir()))
        output = tmp_path / "rows.json"
        assert predict.main([str(run), *files, f"--output={output}"]) == 0
        for row in json.loads(output.read_text()):
            confusion[label, row["class"]] += 1
    assert confusion.tolist() == found["confusion_matrix"]
    assert 0 < found["correct"] < found["count"], "a case in which nothing could go wrong"


@pytest.mark.parametrize("kind", ["webdataset", "huggingface"])
def test_other_formats_of_pictures_are_read_alike(kind: str, tmp_path: Path) -> None:
    """Law: the file of a sample, predicted, is the sample that was evaluated, to the bit."""
    if kind == "huggingface" and find_spec("datasets") is None:
        pytest.skip("datasets is missing: Hugging Face sets are NOT tested")
    root = (make_shards if kind == "webdataset" else make_saved)(tmp_path / "set")
    kwargs: dict[str, Any] = {"size": 12, "crop": 0.75}
    data = load_datasets(DataConfig(dataset=kind, root=str(root), kwargs=kwargs), seed=0)
    assert data.facts().fit == PictureFit(size=(12, 12), crop=0.75)
    for number in range(len(data.test)):
        label = number % len(CLASSES)
        ending = "jpg" if kind == "webdataset" else "png"
        path = tmp_path / f"{number}.{ending}"
        path.write_bytes(encoded(picture(label, number + 500), ending))
        read = open_images(path, Reading(facts=data.facts())).read(0, 1)[0]
        assert torch.equal(read, data.test[number][0])


@pytest.fixture(scope="module")
def pictures_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A run on pictures, and some of those."""
    folder = tmp_path_factory.mktemp("pictures")
    root = make_tree(folder / "set", num_train=40, num_test=12)
    kwargs = json.dumps({"size": [9, 14], "crop": 0.6})
    options = ("--data.dataset=image_folder", f"--data.kwargs={kwargs}", "--train.epochs=1")
    run = train_here(folder, root, *options, "--model.kwargs={hidden: [8]}")
    return run, sorted((root / "val").glob("*/*.png"))


def rows_of(run: Path, folder: Path, *arguments: object) -> list[list[float]]:
    output = folder / "rows.json"
    assert predict.main([str(run), *map(str, arguments), f"--output={output}"]) == 0
    return [row["probabilities"] for row in json.loads(output.read_text())]


def test_an_earlier_run_treats_its_pictures_as_its_config_says(
    pictures_run: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    """Law: with a model.json that does not say so, and --resize, which once squashed them."""
    run, files = pictures_run
    earlier = Path(shutil.copytree(run, tmp_path / "run", symlinks=True))
    content = json.loads((run / "model.json").read_text())
    assert content.pop("fit") == {"size": [9, 14], "crop": 0.6}
    (earlier / "model.json").write_text(json.dumps(content))
    expected = rows_of(run, tmp_path, *files)
    assert rows_of(earlier, tmp_path, *files) == expected
    assert rows_of(earlier, tmp_path, *files, "--resize") == expected


def test_an_array_of_a_picture_is_resized_as_the_picture_is(
    pictures_run: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    run, files = pictures_run
    arrays = [tmp_path / f"{number}.npy" for number in range(len(files))]
    for path, file in zip(arrays, files, strict=True):
        np.save(path, np.asarray(Image.open(file)))
    assert rows_of(run, tmp_path, *arrays, "--resize") == rows_of(run, tmp_path, *files)
    with pytest.raises(InputError, match=r"expected \(9, 14\), as in training"):
        rows_of(run, tmp_path, arrays[0])


def test_an_export_says_what_was_done_to_pictures(
    pictures_run: tuple[Path, list[Path]], trained_run: Path
) -> None:
    for run, expected in ((pictures_run[0], {"size": [9, 14], "crop": 0.6}), (trained_run, None)):
        exported = export(load_trained(run), "safetensors", include_normalization=True)
        length = int.from_bytes(exported.content[:8], "little")
        metadata = json.loads(exported.content[8 : 8 + length])["__metadata__"]
        assert json.loads(metadata["fit"]) == expected


def test_values_that_are_not_finite_are_blamed_on_the_data_that_hold_them(tmp_path: Path) -> None:
    """Law: by evaluate and predict, with the sample; not on the training."""
    inputs = np.random.default_rng(0).normal(size=(53, 3, 6, 5)).astype(np.float32)
    given = {"train_inputs": inputs, "test_inputs": inputs[:19]}
    root = make_arrays(tmp_path / "set", **given)
    model = "--model.kwargs={hidden: [8]}"
    run = train_here(tmp_path, root, "--data.dataset=npy", model, "--train.epochs=1")
    damaged = inputs[:19].copy()
    damaged[4, 0, 0, 0] = np.nan
    np.save(root / "test_inputs.npy", damaged)
    with pytest.raises(InputError, match=r"test sample 4: given 'values that are not finite'"):
        evaluate.main([str(run)])
    with pytest.raises(InputError, match=r"npy, image 4: given 'values that are not finite'"):
        rows_of(run, tmp_path, root / "test_inputs.npy")
    assert not (tmp_path / "rows.json").exists()
    assert not (run / "evaluation.json").exists()


def test_a_run_of_an_earlier_version_says_nothing_of_pictures(trained_run: Path) -> None:
    content = json.loads((trained_run / "model.json").read_text())
    del content["fit"]
    assert InputFacts.from_json(content, "model.json") == load_trained(trained_run).facts


def test_a_negative_is_noticed(
    tmp_path: Path, trained_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Law: a hint where the pictures' mean is that of the training data's negatives, only there."""
    run = tmp_path / "run"
    run.mkdir()
    content = json.loads((trained_run / "model.json").read_text()) | {"mean": [0.13]}
    for name in ("config.yaml", "checkpoints"):
        (run / name).symlink_to(trained_run / name)
    (run / "model.json").write_text(json.dumps(content))
    for value, hinted in ((230, True), (20, False), (120, False)):
        caplog.clear()
        np.save(tmp_path / "x.npy", np.full((5, 9, 7), value, np.uint8))
        rows = tmp_path / "rows.json"
        assert predict.main([str(run), str(tmp_path / "x.npy"), f"--output={rows}"]) == 0
        assert ("5 of 5 images" in caplog.text) == hinted
    caplog.clear()
    np.save(tmp_path / "x.npy", np.full((5, 9, 7), 230, np.uint8))
    arguments = [str(run), str(tmp_path / "x.npy"), f"--output={rows}", "--invert"]
    assert predict.main(arguments) == 0
    assert not caplog.text


def test_a_person_is_shown_a_short_table_and_a_pipe_gets_every_digit(
    trained_run: Path,
    idx_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = [str(trained_run), str(idx_folder / "test-images-idx3-ubyte")]
    assert predict.main(arguments) == 0
    piped = capsys.readouterr().out.splitlines()
    assert piped[0].startswith("input,index,class,name,probability,p_0")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    assert predict.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "probability" in shown
    assert not re.search(r"0\.\d{3}", shown)
    assert shown.count("%") == 3 * 101
    assert predict.main([*arguments, "--as=csv"]) == 0
    assert capsys.readouterr().out.splitlines() == piped
