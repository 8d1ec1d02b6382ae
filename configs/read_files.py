"""YAML and JSON from files that nobody may have meant well with: read within bounds, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from configs.errors import InputError

MOST_BYTES = 4 << 20
MOST_VALUES = 200_000
"""Values of a file, each counted as often as aliases repeat it."""
DEEPEST = 64
MERGE = "tag:yaml.org,2002:merge"


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        InputError: With the place, if it cannot be read, gives a key twice, contains itself, or
            becomes larger or deeper than any config.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Without keys that are given twice, of which the last would win."""

    def mapping(loader: Any, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE:
                continue
            key = loader.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float | bool | None) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key if isinstance(key, str | int | float | bool | None) else id(key))
        loader.flatten_mapping(node)
        found: dict[Any, Any] = yaml.SafeLoader.construct_mapping(loader, node, deep=deep)
        return found

    def lazily(loader: Any, node: Any) -> Any:
        data: dict[Any, Any] = {}
        yield data  # an alias may lead back to it
        data.update(mapping(loader, node))

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, lazily)
    try:
        content = yaml.load(_text(path), Loader)
        _measure(content)
    except RecursionError:
        raise _unreadable(path, "it is nested too deeply") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _unreadable(path, error) from None
    return content


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: If it is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _text(path: Path) -> str:
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
    return path.read_text(encoding="utf-8")


def _unreadable(path: Path, reason: object) -> InputError:
    return InputError(
        f"{path} is not a readable YAML file: {' '.join(str(reason).split())[:300]}",
        remedy="Correct that place.",
    )


def _measure(content: Any) -> None:
    """Refuse what contains itself, or unfolds to more than anybody writes."""
    sizes: dict[int, int] = {}

    def size(value: Any, above: tuple[int, ...]) -> int:
        if not isinstance(value, dict | list):
            return 1
        if id(value) in above:
            raise ValueError("a value contains itself")
        if len(above) > DEEPEST:
            raise ValueError("it is nested too deeply")
        if id(value) not in sizes:
            inner = (*above, id(value))
            parts = value.values() if isinstance(value, dict) else value
            sizes[id(value)] = 1 + sum(size(part, inner) for part in parts)
            if sizes[id(value)] > MOST_VALUES:
                raise ValueError("its aliases unfold to too many values")
        return sizes[id(value)]

    size(content, ())
