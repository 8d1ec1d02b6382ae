"""Names in a config -> factories: a short name from a table, or `package.module:attribute`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from configs.errors import InputError, did_you_mean
from configs.imports import import_callable, is_import_path


def resolve(key: str, name: str, table: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The factory called `name`.

    Raises:
        InputError: If the table has no such name (the closest one is suggested) or the import path
            leads nowhere.
    """
    if is_import_path(name):
        return import_callable(key, name, "the import path of a callable")
    if name not in table:
        raise InputError(
            key,
            given=name,
            expected=f"one of {', '.join(table)}, or an import path `package.module:attribute`",
            remedy=did_you_mean(name, table),
        )
    return table[name]


def any_case(name: str, table: Mapping[str, Any]) -> str:
    """The name as the table spells it, if it has it in any case; else as it is given."""
    if name in table or is_import_path(name):
        return name
    return {known.lower(): known for known in table}.get(name.lower(), name)
