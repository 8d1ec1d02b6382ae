"""Data sets of the Hugging Face library: saved on a disk, or by name from the hub."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.errors import InputError, did_you_mean, expect, one_line
from configs.imports import import_extra
from configs.schema import DataConfig
from data.formats.decode import PictureOptions, PictureReader
from data.formats.parts import REMEDY, VALIDATION_NAMES, PartOptions, choose_parts
from data.labels import SET_NUM_CLASSES, ClassCounter
from data.options import folder_of, read_options
from data.samples import NOTHING, Datasets, dtype_name
from data.splits import Indices


@dataclass(frozen=True, kw_only=True)
class HuggingFaceOptions(PartOptions, PictureOptions):
    """Parts are splits of the data set."""

    path: str | None = None
    """Name on the hub, or a local folder that load_dataset reads; default: data.root, as
    save_to_disk wrote it."""
    name: str | None = None
    """Configuration of a data set that has several."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""
    input: str = "image"
    """Column of the inputs: pictures or numbers."""
    target: str = "label"
    """Column of the targets."""
    num_classes: int | None = None
    """Number of classes; default: as the data set says, or the highest target plus one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = self.num_classes is None or self.num_classes >= 1
        expect(self, "data.kwargs.num_classes", positive, "1 or more")


class Table:
    """Two columns of a split, a sample at a time.

    Args:
        rows: A split of the library, which maps its files into memory.
        split: Its name.
        options: Names of the columns.
        read: Turns a cell of the input column into a tensor, given its name for messages.
        classes: Where targets are text: which number each is.
    """

    def __init__(
        self,
        rows: Any,
        split: str,
        options: HuggingFaceOptions,
        read: Callable[[Any, str], Tensor],
        classes: Mapping[str, int],
    ) -> None:
        self.classes = classes
        self.rows = rows
        self.split = split
        self.options = options
        self.read = read

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Sequence[Any]:
        """The column of the targets, texts as the classes they are."""
        cells: Sequence[Any] = self.rows.with_format(None)[self.options.target][:]
        return [self.classes[cell] for cell in cells] if self.classes else cells

    def part(self, indices: Indices, *, training: bool) -> Table:
        read = self.read
        if isinstance(read, _Cells):
            read = _Cells(read.reader.as_for(training=training))
        return Table(self.rows.select(indices), self.split, self.options, read, self.classes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = self.rows[index]
        name = f"sample {index} of split {self.split}"
        cell = row[self.options.target]
        target = torch.as_tensor(np.asarray(self.classes[str(cell)] if self.classes else cell))
        is_integer = not target.is_floating_point()
        return self.read(
            row[self.options.input], name
        ), target.long() if is_integer else target.float()


def load_huggingface(config: DataConfig) -> Datasets:
    """The splits of a data set of the library.

    Raises:
        InputError: If it cannot be loaded, or lacks a split or a column.
    """
    options = read_options(HuggingFaceOptions, config)
    library = import_extra("datasets", "hf")
    splits = _open(library, config, options)
    names = _names(splits, options, cut_test=config.test > 0)
    train = splits[names["train"]]
    feature = train.features[_column(train, options.input)]
    labels = train.features[_column(train, options.target)]
    for name, column in itertools.product(names.values(), (options.input, options.target)):
        if splits[name].features.get(column) != train.features[column]:
            raise InputError(
                f"column {column!r} of split {name}",
                given=splits[name].features.get(column, "nothing"),
                expected=f"{train.features[column]}, as in training",
            )
    pictures = isinstance(feature, library.Image)
    expect(options, "data.kwargs.augment", pictures or not options.augment, "pictures")
    rows_of = {name: splits[name] for name in names.values()}
    texts = _texts(labels, options.target, rows_of)
    tables: dict[str, Table] = {}
    columns = [options.input, options.target]
    for role, split in names.items():
        rows = splits[split].select_columns(columns)
        if pictures:  # decoded here, so that a broken one is named and all are treated alike
            rows = rows.cast_column(options.input, library.Image(decode=False))
            read: Callable[[Any, str], Tensor] = _Cells(
                PictureReader(options, training=role == "train")
            )
        else:
            rows, read = rows.with_format("numpy"), _as_numbers
        tables[role] = Table(rows, split, options, read, texts)
    first, target = tables["train"][0]
    number = len(texts) or _num_classes(options, labels, target, rows_of)
    if not first.ndim:
        raise InputError(
            f"column {options.input!r}",
            given="single numbers",
            expected="pictures, or several numbers for each sample",
            remedy="Name the column of the inputs with data.kwargs.input.",
        )
    return Datasets(
        train=tables["train"],
        test=tables.get("test", NOTHING),
        validation=tables.get("validation"),
        input_shape=tuple(first.shape),
        num_classes=number,
        **options.normalisation(first, pictures=pictures),
        scale=255.0 if first.dtype == torch.uint8 else 1.0,
        classes=tuple(texts) or tuple(getattr(labels, "names", None) or ()),
        dtype=dtype_name(first),
        fit=options.fit if pictures else None,
    )


def _open(library: Any, config: DataConfig, options: HuggingFaceOptions) -> Any:
    """The splits by name."""
    if options.path is None:
        source: str | Path = folder_of(config.root, "a data set that save_to_disk wrote")
    else:
        source = options.path
        if not config.download and not Path(source).expanduser().is_dir():
            raise InputError(
                "data.kwargs.path",
                given=source,
                expected="a local folder, since data.download is false",
            )
    try:
        if options.path is None:
            found = library.load_from_disk(str(source))
        else:
            found = library.load_dataset(
                options.path, options.name, revision=options.revision, cache_dir=config.root
            )
    except Exception as error:  # the network, the hub and its readers raise what they like
        reason = one_line(error)
        raise InputError(
            f"data set {str(source)!r} cannot be loaded ({type(error).__name__}: {reason})",
            expected="a folder that save_to_disk wrote, or a name on the hub as data.kwargs.path",
        ) from None
    return found if isinstance(found, Mapping) else {options.train: found}


def _names(
    splits: Mapping[str, Any], options: HuggingFaceOptions, *, cut_test: bool
) -> dict[str, str]:
    """The split of each part, by role."""

    def is_there(name: str) -> bool:
        return name in splits and len(splits[name]) > 0

    parts = choose_parts(options, is_there, cut_test=cut_test)
    missing = [name for _, name in parts.found if not is_there(name)]
    if not parts.test and not cut_test:
        missing.append(" or ".join(("test", *VALIDATION_NAMES)))
    if missing:
        raise InputError(
            "splits of the data set",
            given=", ".join(splits),
            expected=f"{' and '.join(missing)} with one sample or more",
            remedy=REMEDY,
        )
    return dict(parts.found)


def _column(rows: Any, name: str) -> str:
    if name not in rows.column_names:
        raise InputError(
            "columns of the data set",
            given=", ".join(rows.column_names),
            expected=repr(name),
            remedy="Name them with data.kwargs.input and data.kwargs.target. "
            + did_you_mean(name, rows.column_names),
        )
    return name


class _Cells:
    """Pictures as the library stores them: bytes, or the path of a file."""

    def __init__(self, reader: PictureReader) -> None:
        self.reader = reader

    def __call__(self, cell: Any, name: str) -> Tensor:
        if cell is None:
            raise InputError(name, given="nothing", expected="a picture")
        source = cell["bytes"] if cell["bytes"] is not None else Path(cell["path"])
        return self.reader(source, f"{name} ({cell['path']})" if cell["path"] else name)


def _as_numbers(cell: Any, name: str) -> Tensor:
    array = np.asarray(cell)
    if array.dtype.kind not in "iuf":
        raise InputError(
            name,
            given=f"{type(cell).__name__} {str(cell)[:40]!r}",
            expected="a picture or numbers",
            remedy="Turn other columns into numbers first, or give a data set by import path.",
        )
    return torch.from_numpy(np.array(array))


def _texts(labels: Any, column: str, splits: Mapping[str, Any]) -> dict[str, int]:
    """The classes of a column of text, numbered in alphabetical order; none of another column."""
    if getattr(labels, "dtype", None) not in ("string", "large_string"):
        return {}
    found: set[str] = set()
    for name, rows in splits.items():
        values = rows.unique(column)
        if None in values:
            raise _bad_label(column, name, rows, None, "a text")
        found.update(values)
    return {text: number for number, text in enumerate(sorted(found))}


def _num_classes(
    options: HuggingFaceOptions, labels: Any, target: Tensor, splits: Mapping[str, Any]
) -> int:
    """Classes of a column of whole numbers, each checked; else the numbers in a target."""
    whole = "int" in str(getattr(labels, "dtype", ""))  # a first row of none is read as NaN
    if target.ndim or (target.is_floating_point() and not whole):
        return options.num_classes or target.numel()
    known = int(options.num_classes or getattr(labels, "num_classes", None) or 0)
    counter = ClassCounter()
    for name, rows in splits.items():
        values = rows.unique(options.target)
        bad = [v for v in values if v is None or v < 0]
        if bad:
            expected = f"0 to {known - 1}" if known else "0 or more"
            raise _bad_label(options.target, name, rows, bad[0], expected)
        counter.add(np.array(values), f"column {options.target!r} of split {name}, distinct")
    return known or counter.count(SET_NUM_CLASSES)


def _bad_label(column: str, split: str, rows: Any, value: Any, expected: str) -> InputError:
    """The first row with that value, by its number."""
    row = list(rows[column]).index(value)
    where = f"column {column!r}, row {row} of split {split}"
    return InputError(where, given="nothing" if value is None else value, expected=expected)
