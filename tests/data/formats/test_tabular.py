"""Tables: columns become features, texts become 0 or 1 for each value, and nothing is guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.errors import InputError
from configs.schema import DataConfig
from data.datasets import Datasets, load_datasets
from data.normalize import Normalize
from data.samples import ArrayDataset, moments
from tests.support.processes import ROOT

pytest.importorskip("pyarrow", reason="pyarrow is missing: tables are NOT tested")

ROWS = """size,colour,weight,kind,label
1,red,1000,0,yes
2,blue,3000,1,no
3,red,2000,0,yes
4,green,1000,1,maybe
"""
MORE = """size,colour,weight,kind,label
5,green,500,1,no
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "train.csv").write_text(ROWS)
    (tmp_path / "test.csv").write_text(MORE)
    return tmp_path


def load(root: Path, dataset: str = "csv", **kwargs: Any) -> Datasets:
    options = {key: kwargs.pop(key) for key in ("test", "validation") if key in kwargs}
    config = DataConfig(dataset=dataset, root=str(root), kwargs=kwargs, **options)
    return load_datasets(config, seed=0)


def array(data: Any) -> ArrayDataset:
    assert isinstance(data, ArrayDataset)
    return data


def test_numbers_stay_numbers_and_texts_become_features(root: Path) -> None:
    """Law: features in the order of the columns, values of a text in theirs; classes by name."""
    data = load(root)
    assert data.input_shape == (6,)
    assert data.features == (
        "size", "colour=blue", "colour=green", "colour=red", "weight", "kind"
    )  # fmt: skip
    assert array(data.train).inputs.tolist()[:2] == [
        [1, 0, 0, 1, 1000, 0],
        [2, 1, 0, 0, 3000, 1],
    ]
    assert array(data.test).inputs.tolist() == [[5, 0, 1, 0, 500, 1]]
    assert data.classes == ("maybe", "no", "yes")
    assert array(data.train).targets.tolist() == [2, 1, 2, 0]
    assert array(data.test).targets.tolist() == [1]


def test_columns_are_chosen_left_out_and_declared(root: Path) -> None:
    assert load(root, columns=["weight", "size"]).input_shape == (2,)
    assert array(load(root, columns=["weight", "size"]).test).inputs.tolist() == [[500, 5]]
    assert load(root, skip=["colour"]).input_shape == (3,)
    assert load(root, categories=["kind"]).input_shape == (7,)
    assert load(root, target="kind", skip=["label"]).num_classes == 2


def test_a_target_with_decimals_is_a_number_and_others_can_be(root: Path) -> None:
    data = load(root, target="size", target_is="number", skip=["label"])
    assert array(data.train).targets.tolist() == [1, 2, 3, 4]
    assert array(data.train).targets.dtype == torch.float32
    assert data.num_classes == 1
    for name in ("train", "test"):
        path = root / f"{name}.csv"
        path.write_text(path.read_text().replace(",1000,", ",1000.5,").replace(",500,", ",500.5,"))
    assert array(load(root, target="weight").train).targets.tolist()[0] == 1000.5


def test_parquet_says_the_same(root: Path) -> None:
    csv, parquet = (pytest.importorskip(f"pyarrow.{name}") for name in ("csv", "parquet"))
    for name in ("train", "test"):
        parquet.write_table(csv.read_csv(root / f"{name}.csv"), root / f"{name}.parquet")
    ours, theirs = load(root), load(root, "parquet")
    assert torch.equal(array(ours.train).inputs, array(theirs.train).inputs)
    assert torch.equal(array(ours.train).targets, array(theirs.train).targets)
    assert ours.classes == theirs.classes


@pytest.mark.parametrize(
    ("change", "kwargs", "message"),
    [
        (("3,red,", ",red,"), {}, r"train\.csv: row 3, column 'size': given 'nothing'"),
        (("2,blue", "2,"), {}, r"train\.csv: row 2, column 'colour': given 'nothing'"),
        (("0,yes\n2", "0,\n2"), {}, r"row 1, column 'label': given 'nothing'"),
        ((",500,", ",NA,"), {}, r"test\.csv: row 1, column 'weight': given 'nothing'"),
        (("5,green", "5,pink"), {}, r"row 1, column 'colour': given 'pink', expected a value of"),
        (
            ("5,green", "big,green"),
            {},
            r"test\.csv: row 1, column 'size': given 'big', expected a numb",
        ),
        (("3,red", "inf,red"), {}, r"train\.csv: row 3, column 'size': given inf"),
        ((",500,", ",1e300,"), {}, r"test\.csv: row 1, column 'weight': given 1e\+300"),
        (("weight", "size"), {}, r"columns or more called size', expected a name"),
        (("x", "x"), {"target": "labl"}, r"given 'labl', .*Did you mean 'label'"),
        (("x", "x"), {"columns": ["sizes"]}, r"data\.kwargs\.columns: given 'sizes'"),
        (("x", "x"), {"columns": ["label"]}, r"expected a column of a feature"),
        (("label", "outcome"), {}, r"the column of the targets: .*data\.kwargs\.target"),
        (("x", "x"), {"mean": [1, 2], "std": [1, 2]}, r"one for each of 6 channels or features"),
        (("x", "x"), {"target_is": "text"}, r"auto, class or number"),
        (
            ("x", "x"),
            {"target_is": "number"},
            r"row 1, column 'label': given 'yes', expected a num",
        ),
        (("size,colour", '"size,colour'), {}, r"cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_row_and_column(
    change: tuple[str, str], kwargs: dict[str, Any], message: str, root: Path
) -> None:
    for name in ("train", "test"):
        path = root / f"{name}.csv"
        path.write_text(path.read_text().replace(*change))
    with pytest.raises(InputError, match=message):
        load(root, **kwargs)


def write(root: Path, **columns: Any) -> None:
    """Both files, of the same rows."""
    rows = [
        ",".join(columns),
        *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True)),
    ]
    for name in ("train", "test"):
        (root / f"{name}.csv").write_text("\n".join(rows) + "\n")


def test_what_training_calls_a_text_is_one_in_a_file_that_holds_numbers_only(
    root: Path,
) -> None:
    """Law: the type of a column is that of the training file, whatever another one looks like."""
    (root / "train.csv").write_text("zip,label\n12,1\n1a,b\n")
    (root / "test.csv").write_text("zip,label\n12,1\n12,1\n")
    data = load(root)
    assert array(data.test).inputs.tolist() == [[1, 0]] * 2
    assert array(data.test).targets.tolist() == [0, 0]
    assert data.classes == ("1", "b")


@pytest.mark.parametrize(
    "column",
    [
        [f"2020-01-{day:02d}" for day in range(1, 21)],
        [f"person {number}" for number in range(20)],
        [f"{number}" for number in range(19)] + ["?"],
    ],
    ids=["dates", "names of rows", "numbers with a stray text"],
)
def test_what_names_a_row_is_no_category_unless_it_is_listed(root: Path, column: list[str]) -> None:
    write(root, what=column, size=range(20), label=[0, 1] * 10)
    with pytest.raises(InputError, match=r"column 'what': given '20 different values .*skip"):
        load(root)
    assert load(root, skip=["what"]).input_shape == (1,)
    assert load(root, categories=["what"]).input_shape == (21,)


def test_numbers_that_float32_cannot_tell_apart_are_refused(root: Path) -> None:
    """Seconds since 1970 that lie close together would all become one number."""
    write(root, time=[1_700_000_000 + second for second in range(4)], label=[0, 1, 0, 1])
    with pytest.raises(InputError, match=r"'time': given '1700000000 to 1700000003'.*Subtract"):
        load(root)
    (root / "train.csv").write_text("time,label\n1700000000,0\n1400000000,1\n")
    assert load(root).input_shape == (1,)


def test_names_of_columns_that_are_no_text_are_refused(root: Path) -> None:
    path = root / "test.csv"
    path.write_bytes(b"\xdb" + path.read_bytes())
    with pytest.raises(InputError, match=r"test\.csv cannot be read"):
        load(root)


def test_a_missing_file_is_named_and_one_file_can_be_cut(root: Path) -> None:
    (root / "test.csv").unlink()
    with pytest.raises(InputError, match=r"expected test\.csv or val\.csv.*--data\.test 0\.1"):
        load(root)
    (root / "train.csv").rename(root / "everything.csv")
    assert len(load(root, test=1).train) == 3


def test_every_feature_has_a_mean_and_a_deviation_of_its_own(root: Path) -> None:
    """Law: of the training rows that are left; a feature that never changes is left alone."""
    data = load(ROOT / "data" / "embedded" / "wine", target="cultivar", test=0.3)
    assert len(data.mean) == 13
    inputs = Normalize(data, torch.device("cpu"))(array(data.train).inputs)
    assert inputs.mean(0).abs().max() < 1e-5
    assert (inputs.std(0, correction=0) - 1).abs().max() < 1e-4
    assert moments(torch.tensor([[1.0, 2.0], [1.0, 4.0]])) == ((1.0, 3.0), (1.0, 1.0), 1.0)
    one = load(root, mean=[3.0], std=[2.0])
    assert (one.mean, one.std) == ((3.0,), (2.0,))
    assert load(root, mean=3.0, std=2).mean == (3.0,)


def test_the_wines_are_the_published_ones() -> None:
    """Means and counts are those of the repository's description."""
    data = load(ROOT / "data" / "embedded" / "wine", target="cultivar", test=1)
    inputs = torch.cat([array(data.train).inputs, array(data.test).inputs])
    targets = torch.cat([array(data.train).targets, array(data.test).targets])
    assert torch.bincount(targets).tolist() == [59, 71, 48]
    assert inputs.shape == (178, 13)
    assert inputs[:, 12].mean() == pytest.approx(746.89, abs=0.01)
    assert (inputs[:, 12].min(), inputs[:, 12].max()) == (278, 1680)
    assert inputs[:, 0].mean() == pytest.approx(13.0, abs=0.01)


def test_vectors_of_any_format_have_one_for_each_feature(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    scales = np.array([0.1, 1.0, 1000.0], np.float32)
    for split, count in (("train", 40), ("test", 8)):
        inputs = random.normal(5, 1, (count, 3)).astype(np.float32) * scales
        np.save(tmp_path / f"{split}_inputs.npy", inputs)
        np.save(tmp_path / f"{split}_targets.npy", np.arange(count) % 2)
    data = load(tmp_path, "npy")
    assert np.allclose(np.array(data.std) / scales, 1, atol=0.4)
    given = load(tmp_path, "npy", mean=[1, 2, 3], std=[1, 2, 3])
    assert given.mean == (1, 2, 3)
    with pytest.raises(InputError, match="one for each of 3 channels or features"):
        load(tmp_path, "npy", mean=[1, 2], std=[1, 2])
    datasets = pytest.importorskip("datasets")
    rows = {"x": inputs.tolist(), "y": [0, 1] * 4}
    saved = datasets.DatasetDict({n: datasets.Dataset.from_dict(rows) for n in ("train", "test")})
    saved.save_to_disk(str(tmp_path / "hf"))
    columns = {"input": "x", "target": "y"}
    found = load(tmp_path / "hf", "huggingface", **columns)
    assert np.allclose(np.array(found.std) / scales, 1, atol=0.6)
    given = load(tmp_path / "hf", "huggingface", **columns, mean=[1, 2, 3], std=[1, 2, 3])
    assert given.std == (1, 2, 3)
