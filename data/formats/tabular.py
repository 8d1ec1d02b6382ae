"""Tables of rows: CSV and Parquet files, a column for each feature and one for the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from configs.errors import InputError, did_you_mean, expect
from configs.schema import DataConfig
from data.formats.parts import REMEDY, VALIDATION_NAMES, PartOptions, choose_parts
from data.formats.table_file import (
    Columns,
    cell_name,
    check_cells,
    is_numeric,
    is_time,
    numbers,
    read_columns,
    text_columns,
)
from data.labels import ClassCounter
from data.options import MomentOptions, folder_of, read_options
from data.samples import NOTHING, ArrayDataset, Datasets, moments_of_array

TARGETS = ("target", "label", "class", "y")
"""Names of the target's column that need not be given."""

MOST_VALUES = 1000
"""Values of a column of texts that is taken for categories without being listed as such."""
LEAST_ROWS = 16
"""Rows from which on texts that nearly all differ are taken for names of the rows."""


@dataclass(frozen=True, kw_only=True)
class TableOptions(PartOptions, MomentOptions):
    """Parts are files in data.root, without their ending; a file alone is what is trained on."""

    target: str | None = None
    """Column of the targets; default: target, label, class or y."""
    columns: tuple[str, ...] = ()
    """Columns of the features, in this order; default: all others."""
    skip: tuple[str, ...] = ()
    """Columns that are no features."""
    categories: tuple[str, ...] = ()
    """Columns of numbers that are names of something; texts are so without being listed."""
    target_is: str = "auto"
    """class, number (for task.name=regression), or auto: a number if it has decimals."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = ("auto", "class", "number")
        expect(self, "data.kwargs.target_is", self.target_is in kinds, "auto, class or number")


@dataclass(frozen=True, slots=True)
class Feature:
    """A column of the table and what becomes of it."""

    name: str
    values: tuple[Any, ...]
    """The values that get a feature each, 0 or 1; empty: the number itself."""

    @property
    def names(self) -> list[str]:
        """Of what the model gets of it."""
        return [f"{self.name}={value}" for value in self.values] or [self.name]


def load_csv(config: DataConfig) -> Datasets:
    """CSV files with a line of names; see `load_tables`."""
    return load_tables(config, "csv")


def load_parquet(config: DataConfig) -> Datasets:
    """Parquet files; see `load_tables`."""
    return load_tables(config, "parquet")


def load_tables(config: DataConfig, ending: Literal["csv", "parquet"]) -> Datasets:
    """The files in `data.root`, in memory as float32 `(N, features)`.

    Numbers stay what they are and are normalised feature by feature; a column of texts or of
    categories becomes a feature for each of its values in the training file, in their order.

    Raises:
        InputError: For a file or column that is missing, an empty cell and a category that
            training has not, with row and column.
    """
    options = read_options(TableOptions, config)
    root = folder_of(config.root, f"train.{ending} and test.{ending}")
    paths = _find(root, options, ending, cut_test=config.test > 0)
    train = read_columns(paths["train"])
    texts = text_columns(train)  # a file may hold only those that look like numbers
    others = {role: read_columns(path, texts) for role, path in paths.items() if role != "train"}
    tables = {"train": train, **others}
    target = _target(options, train, paths["train"])
    features = _features(options, train, paths["train"], target)
    for role, table in tables.items():
        names = [target, *(feature.name for feature in features)]
        check_cells(
            table, paths[role], [_column(name, table, paths[role], "columns") for name in names]
        )
    labels, classes = _labels(options, tables, paths, target)
    sets = {
        role: ArrayDataset(
            torch.from_numpy(_inputs(table, features, paths[role], role)),
            torch.from_numpy(labels[role]),
        )
        for role, table in tables.items()
    }
    width = sets["train"].inputs.shape[1]
    known = options.given((width,)) or {"measure": moments_of_array}
    return Datasets(
        train=sets["train"],
        test=sets.get("test", NOTHING),
        validation=sets.get("validation"),
        input_shape=(width,),
        num_classes=len(classes) or 1,
        classes=tuple(map(str, classes)),
        features=tuple(name for feature in features for name in feature.names),
        **known,
    )


def _find(root: Path, options: TableOptions, ending: str, *, cut_test: bool) -> dict[str, Path]:
    def path(name: str) -> Path:
        return root / (name if name.endswith(f".{ending}") else f"{name}.{ending}")

    parts = choose_parts(options, lambda name: path(name).is_file(), cut_test=cut_test)
    alone = sorted(root.glob(f"*.{ending}"))
    if cut_test and len(alone) == 1 and parts.found == [("train", "train")]:
        return {"train": alone[0]}
    missing = [path(name).name for _, name in parts.found if not path(name).is_file()]
    if not parts.test and not cut_test:
        missing.append(" or ".join(path(name).name for name in ("test", *VALIDATION_NAMES)))
    if missing:
        raise InputError(
            f"tables in {root}",
            given=", ".join(found.name for found in alone) or "none",
            expected=" and ".join(missing),
            remedy=REMEDY,
        )
    return {role: path(name) for role, name in parts.found}


def _target(options: TableOptions, table: Columns, path: Path) -> str:
    if options.target is not None:
        return _column(options.target, table, path, "data.kwargs.target")
    for name in TARGETS:
        if name in table:
            return name
    raise InputError(
        f"{path}: the column of the targets",
        given=", ".join(table),
        expected=f"one called {', '.join(TARGETS)}",
        remedy="Name it with data.kwargs.target.",
    )


def _column(name: str, table: Columns, path: Path, key: str) -> str:
    if name not in table:
        raise InputError(
            f"{path}: {key}",
            given=name,
            expected=f"one of {', '.join(table)}",
            remedy=did_you_mean(name, table),
        )
    return name


def _features(options: TableOptions, table: Columns, path: Path, target: str) -> list[Feature]:
    for key in ("columns", "skip", "categories"):
        for name in getattr(options, key):
            _column(name, table, path, f"data.kwargs.{key}")
    left_out = {target, *options.skip}
    names = [name for name in options.columns or table if name not in left_out]
    if not names:
        raise InputError(str(path), given=", ".join(table), expected="a column of a feature")
    return [Feature(name, _values(options, table[name], path, name)) for name in names]


def _values(options: TableOptions, column: Any, path: Path, name: str) -> tuple[Any, ...]:
    """What becomes a feature each; nothing if the column is one of numbers.

    Raises:
        InputError: For points in time, and for texts that rather name the rows, unless the column
            is listed in `categories`.
    """
    listed = name in options.categories
    if is_numeric(column) and not listed:
        return ()
    values = tuple(sorted(value for value in column.unique().to_pylist() if value is not None))
    names_rows = len(column) >= LEAST_ROWS and 2 * len(values) > len(column)
    if not listed and (is_time(column) or names_rows or len(values) > MOST_VALUES):
        raise InputError(
            f"{path}: column {name!r}",
            given=f"{len(values)} different values ({column.type}) in {len(column)} rows",
            expected="numbers, or texts that come again and again",
            remedy="Turn it into numbers, leave it out with data.kwargs.skip, or list it in "
            "data.kwargs.categories: each value is a feature then.",
        )
    return values


def _inputs(
    table: Columns, features: Sequence[Feature], path: Path, role: str
) -> NDArray[np.float32]:
    parts = []
    for feature in features:
        cells = table[feature.name]
        if not feature.values:
            parts.append(numbers(cells, path, feature.name, role=role)[:, None])
            continue
        found = cells.to_pylist()
        places = {value: place for place, value in enumerate(feature.values)}
        for row, value in enumerate(found):
            if value not in places:
                where = cell_name(path, row, feature.name)
                some = ", ".join(map(str, feature.values[:8]))
                raise InputError(where, given=value, expected=f"a value of training: {some}")
        chosen = np.array([places[value] for value in found])
        parts.append(np.eye(len(places), dtype=np.float32)[chosen])
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


def _labels(
    options: TableOptions, tables: Mapping[str, Columns], paths: Mapping[str, Path], target: str
) -> tuple[dict[str, NDArray[Any]], Sequence[Any]]:
    """Targets of each file, and the names of the classes; no names for numbers."""
    cells = {role: table[target] for role, table in tables.items()}
    kinds = {role: str(column.type) for role, column in cells.items()}
    numeric = is_numeric(cells["train"])
    for role, column in cells.items():
        if numeric:
            numbers(column, paths[role], target)  # or a message that names the cell
        elif is_numeric(column):
            raise _not_as_in_training(paths[role], target, kinds[role], kinds["train"])
    whole = numeric and all(kind.startswith(("int", "uint")) for kind in kinds.values())
    if options.target_is == "number" or (options.target_is == "auto" and numeric and not whole):
        return {role: numbers(c, paths[role], target, role=role) for role, c in cells.items()}, ()
    if whole:
        counter, found = ClassCounter(), {}
        for role, column in cells.items():
            found[role] = np.array(column.to_numpy(), np.int64)
            counter.add(found[role], f"{paths[role]}: column {target!r}")
        return found, range(counter.count())
    values = sorted({value for column in cells.values() for value in column.unique().to_pylist()})
    classes = {value: number for number, value in enumerate(values)}
    return {
        role: np.array([classes[value] for value in column.to_pylist()], np.int64)
        for role, column in cells.items()
    }, values


def _not_as_in_training(path: Path, name: str, found: str, expected: str) -> InputError:
    return InputError(f"{path}: column {name!r}", given=found, expected=expected)
