"""One file of a table: its columns, and their cells as numbers or names."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError, one_line
from configs.imports import import_extra

NUMERIC = ("int", "uint", "float", "double", "halffloat", "decimal")
TIMES = ("date", "time", "duration")
MOST_ROUNDED = 0.01
"""Part of a column's deviation that may be lost when it becomes float32."""

Columns = Mapping[str, Any]
"""The columns of one file by name, as arrays of pyarrow."""


def read_columns(path: Path, texts: Collection[str] = ()) -> Columns:
    """The columns of a CSV or Parquet file.

    Args:
        path: Ends in .csv or .parquet.
        texts: Columns of a CSV file that are texts even if all of them look like numbers.

    Raises:
        InputError: If it is no table, has no rows, or two columns of one name.
    """
    try:
        if path.suffix == ".parquet":
            table = import_extra("pyarrow.parquet", "tables").read_table(path)
        else:
            arrow, csv = (import_extra(name, "tables") for name in ("pyarrow", "pyarrow.csv"))
            types = dict.fromkeys(texts, arrow.string())
            convert = csv.ConvertOptions(strings_can_be_null=True, column_types=types)
            table = csv.read_csv(path, convert_options=convert)
        names = table.column_names  # of bytes until they are asked for
    except InputError:
        raise
    except Exception as error:  # pyarrow raises what its readers like
        reason = one_line(error)
        raise InputError(f"{path} cannot be read ({reason})", expected="a table") from None
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise InputError(
            str(path),
            given=f"two columns or more called {', '.join(twice)}",
            expected="a name of its own for each column",
        )
    if not table.num_rows:
        raise InputError(str(path), given="no rows", expected="one row or more")
    return {name: table.column(name) for name in names}


def is_numeric(column: Any) -> bool:
    return str(column.type).startswith(NUMERIC)


def is_time(column: Any) -> bool:
    return str(column.type).startswith(TIMES)


def text_columns(table: Columns) -> list[str]:
    return [name for name, column in table.items() if str(column.type).endswith("string")]


def check_cells(table: Columns, path: Path, names: Sequence[str]) -> None:
    """Refuse empty cells of these columns, and NaN."""
    for name in names:
        missing = np.asarray(table[name].is_null(nan_is_null=True))
        if missing.any():
            raise InputError(
                cell_name(path, int(missing.argmax()), name),
                given="nothing",
                expected="a value",
                remedy=f"{int(missing.sum())} cells of this column are empty: fill them, drop the "
                "rows, or leave the column out with data.kwargs.skip.",
            )


def numbers(column: Any, path: Path, name: str, *, role: str = "") -> NDArray[np.float32]:
    """The numbers of a column without empty cells, `(N,)`.

    Raises:
        InputError: For a cell that is no number or not finite in float32, and if this is what is
            trained on (`role`) and float32 cannot tell the numbers apart.
    """
    if not is_numeric(column):
        cells = column.to_pylist()
        row = next((row for row, cell in enumerate(cells) if not _is_number(cell)), 0)
        raise InputError(cell_name(path, row, name), given=cells[row], expected="a number")
    exact = np.asarray(column.to_numpy(), np.float64)
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float32)
    finite = np.isfinite(rounded)
    if not finite.all():
        row = int(finite.argmin())
        raise InputError(
            cell_name(path, row, name),
            given=float(exact[row]),
            expected="a finite number below 3.4e38",
            remedy="Repair the row or drop it.",
        )
    lost = float(np.abs(exact - rounded).max())
    if role == "train" and lost > MOST_ROUNDED * float(exact.std()) > 0:
        raise InputError(
            f"{path}: column {name!r}",
            given=f"{exact.min():.17g} to {exact.max():.17g}",
            expected="numbers that 24 bits (float32) can tell apart",
            remedy="Subtract a constant from the column, such as its first value.",
        )
    return rounded


def cell_name(path: Path, row: int, name: str) -> str:
    """How messages call a cell; rows are counted from 1, without the line of names."""
    return f"{path}: row {row + 1}, column {name!r}"


def _is_number(cell: Any) -> bool:
    try:
        return math.isfinite(float(cell))
    except (TypeError, ValueError):
        return False
