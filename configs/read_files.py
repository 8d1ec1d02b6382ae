"""YAML and JSON from files that nobody may have meant well with: read within bounds, or refused."""

from __future__ import annotations

import functools
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from configs.errors import InputError

MOST_BYTES = 4 << 20
MOST_YAML_BYTES = 1 << 19
"""PyYAML reads a megabyte a second."""
MOST_VALUES = 20_000
"""Values of a YAML file, each counted as often as aliases repeat it."""
MOST_DIGITS = 400
"""Of a number; PyYAML's integers to base 60 take the square of their length."""
DEEPEST = 64
MERGE = "tag:yaml.org,2002:merge"
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def read_text(path: Path, *, most: int = MOST_BYTES) -> str:
    """The text of a plain file of at most that many bytes; what is no UTF-8 is replaced.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is larger, or a pipe or a device, which might never end.
    """
    with open_plain(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return content.decode("utf-8", "replace")


def open_plain(path: Path) -> BinaryIO:
    """A plain file to read.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is a pipe or a device, which might never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is no plain file")
    return os.fdopen(descriptor, "rb")


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        InputError: With the place, if it cannot be read, gives a key twice, contains itself, or
            becomes larger or deeper than any config.
    """
    import yaml

    try:
        text = read_text(path, most=MOST_YAML_BYTES)
        loader = _loader()(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure_nodes(node)
        return loader.construct_document(node)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _unreadable(path, "YAML", reason) from None


def read_json(path: Path, *, most: int = MOST_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        FileNotFoundError: If it is not there.
        InputError: If it cannot be read, gives a key twice, or is larger or deeper than it should.
    """
    try:
        return parse_json(read_text(path, most=most))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _unreadable(path, "JSON", reason) from None


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: If it is none, gives a key twice, or is nested too deeply.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError("it is nested too deeply")
        level = [x for item in level for x in (item.values() if isinstance(item, dict) else item)]
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return found


def _unreadable(path: Path, kind: str, reason: object) -> InputError:
    words = " ".join(str(reason).replace('"<unicode string>", ', "").split())
    what = f"{path} is not a readable {kind} file: {words[:300]}"
    remedy = "Correct that place." if kind == "YAML" else "Restore it as it was written."
    return InputError(what, remedy=remedy)


@functools.cache
def _loader() -> Any:
    """A safe loader within bounds, without keys that are given twice: the last would win."""
    import yaml

    class Loader(yaml.SafeLoader):
        depth = values = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            """Depth and length are refused as they come: all that follows would recurse."""
            self.depth, self.values = self.depth + 1, self.values + 1
            deep = self.depth > DEEPEST + 1
            if deep or self.values > MOST_VALUES:
                why = (
                    "it is nested too deeply" if deep else f"it has more than {MOST_VALUES} values"
                )
                event: Any = self.peek_event()  # type: ignore[no-untyped-call]
                raise _marked(why, event.start_mark)
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            if node.tag in NUMBERS and len(node.value) > MOST_DIGITS:
                raise _marked(f"a number of {len(node.value)} digits", node.start_mark)
            try:
                return super().construct_object(node, deep)
            except yaml.YAMLError:
                raise
            except Exception as error:  # what a tag does not fit raises what it likes
                raise _marked(str(error), node.start_mark) from None

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key_node, _ in getattr(node, "value", ()):
                key = MERGE if key_node.tag == MERGE else self.construct_object(key_node, deep=True)
                if isinstance(key, str | int | float | bool | None):
                    if key in seen and key is not MERGE:
                        raise _marked(f"key {key!r} is given twice", key_node.start_mark)
                    seen.add(key)
            return super().construct_mapping(node, deep=deep)

        def flatten_mapping(self, node: Any) -> None:
            if any(key.tag == MERGE for key, _ in node.value):
                super().flatten_mapping(node)

    return Loader


def _marked(problem: str, mark: Any) -> Exception:
    import yaml

    return yaml.constructor.ConstructorError(None, None, problem, mark)


def _measure_nodes(root: Any) -> None:
    """Refuse what contains itself, or unfolds to more than anybody writes."""
    found: dict[int, tuple[int, int]] = {}

    def measure(node: Any, above: tuple[int, ...]) -> tuple[int, int]:
        """(values, depth) of a node, its aliases unfolded."""
        if not isinstance(node.value, list):
            return 1, 0
        if id(node) in above:
            raise _marked("a value contains itself", node.start_mark)
        if id(node) not in found:
            inner = (*above, id(node))
            parts = [
                x for part in node.value for x in (part if isinstance(part, tuple) else [part])
            ]
            sizes = [measure(part, inner) for part in parts]
            size = 1 + sum(size for size, _ in sizes)
            depth = 1 + max((depth for _, depth in sizes), default=0)
            if size > MOST_VALUES:
                raise _marked("its aliases unfold to too many values", node.start_mark)
            if depth > DEEPEST:
                raise _marked("it is nested too deeply", node.start_mark)
            found[id(node)] = size, depth
        return found[id(node)]

    measure(root, ())
