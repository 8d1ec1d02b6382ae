"""Arguments that a config file gives to a model (or task, ...) which was then replaced."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.read_files import read_yaml
from configs.schema import RunConfig

log = logging.getLogger("convoy")

NAMES = dict.fromkeys(("model", "task", "optimizer", "schedule"), "name") | {"data": "dataset"}
"""Groups with `kwargs`, and their keys that say whose arguments these are."""


def without_strange_kwargs(files: Sequence[Path], argv: Sequence[str]) -> list[str]:
    """The whole command line, in which another name of a model (or task, ...) than that of the
    files before it also drops the arguments that these gave to that one."""
    contents = [read_yaml(file) for file in files]
    words = [["--config", str(file)] for file in files] + [list(argv)]
    for group, key in NAMES.items():
        name: str = getattr(getattr(RunConfig(), group), key)
        kwargs: dict[str, Any] = {}
        chosen = [(content.get(group) or {}).get(key) for content in contents]
        for number, now in enumerate([*chosen, _value_of(f"--{group}.{key}", argv)]):
            if now not in (None, name):
                name = now
                if kwargs and _value_of(f"--{group}.kwargs", argv) is None:
                    words[number][:0] = [f"--{group}.kwargs={{}}"]
                    log.info(f"{group}.kwargs {kwargs} are not those of {now}: left out")
                kwargs = {}
            given = (contents[number].get(group) or {}).get("kwargs") if contents[number:] else None
            kwargs |= given if isinstance(given, dict) else {}
    return [word for part in words for word in part]


def _value_of(option: str, argv: Sequence[str]) -> str | None:
    """What a command line says last of an option."""
    said = None
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if name == option:
            said = value if equals else following
    return said
