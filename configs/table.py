"""The table of all config keys, docs/config.md: `python -m configs.table > docs/config.md`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from configs.identity import flatten, identity
from configs.schema import RunConfig

INTRODUCTION = """\
# Config keys

Made from the schema by `python -m configs.table > docs/config.md`; a test holds the two equal.
`convoy train --help all` says the same, and `--print_config` shows what a run would use.

A config is a YAML file of these keys, nested at the dots. Any key may stand on the command line,
too, and wins there over the file: `--optimizer.lr 3e-4`, `--model.kwargs '{"hidden": [64]}'`,
`--model.kwargs.dropout 0.1`. An unknown key is refused with the closest one.

The last column says whether a key **defines the run**: what is learned depends on it, and a run in
a directory is only continued if it is the same. The others say how, where or how far to run, and
may change from one start of a run to the next.

The global batch is what the optimizer sees, whatever the number of ranks. `train.micro_batch_size`
bounds what one rank computes at once; gradient accumulation follows from the two.
"""
WORDS: dict[Any, str] = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true, false",
    NoneType: "null",
    list[str]: "list of texts",
    dict[int, int]: "mapping of whole numbers",
    dict[str, int]: "mapping to whole numbers",
    dict[str, float]: "mapping to numbers",
    dict[str, Any]: "mapping",
    tuple[float, float]: "two numbers",
}
"""Types as a reader of YAML says them."""
Row = tuple[str, Any, str]
"""A key with its dots, its type, and its sentence."""


def config_page() -> str:
    """The text of docs/config.md: every key with its type, default and sentence, group by group.

    Raises:
        KeyError: For a field without a sentence, or of a type that has no name here.
    """
    defaults, defining = flatten(RunConfig()), identity(RunConfig())
    sections = [INTRODUCTION]
    for group, sentence, rows in groups(RunConfig, ""):
        title = f"`{group}`" if group else "At the top"
        lines = [f"## {title}\n", *([f"{sentence}\n"] if group else [])]
        lines += ["| key | type | default | meaning | defines the run |", "|---|---|---|---|---|"]
        for key, hint, meaning in rows:
            default = f"`{literal(defaults[key])}`"
            answer = "yes" if key in defining else ""
            lines.append(f"| `{key}` | {kind(hint)} | {default} | {_cell(meaning)} | {answer} |")
        sections.append("\n".join(lines) + "\n")
    return "\n".join(sections)


def groups(dataclass: type, prefix: str) -> Iterator[tuple[str, str, list[Row]]]:
    """Each group of keys: its own key, its sentence, and its rows of key, type and meaning."""
    hints, sentences = get_type_hints(dataclass), _sentences(dataclass)
    nested = [name for name, hint in hints.items() if is_dataclass(hint)]
    yield prefix, "", [(_join(prefix, k), hints[k], sentences[k]) for k in hints if k not in nested]
    for name in nested:
        inner = groups(hints[name], _join(prefix, name))
        group, _, rows = next(inner)
        yield group, sentences[name], rows
        yield from inner


def _sentences(kind: type) -> dict[str, str]:
    """The text under each field of a dataclass, which `--help all` prints too."""
    from docstring_parser import parse_from_object

    found = {item.arg_name: item.description or "" for item in parse_from_object(kind).params}
    return {item.name: " ".join(found[item.name].split()) for item in fields(kind)}


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def kind(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return ", ".join(kind(part) for part in get_args(hint))
    return WORDS[hint]


def literal(value: Any) -> str:
    """A value as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if value != "" else '""'


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(config_page(), end="")
