"""YAML files and dotted command-line overrides -> RunConfig, or one clear message."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import InputError, did_you_mean
from configs.identity import flatten
from configs.imports import find_beside
from configs.keys import describe, hint_of, is_group, is_mapping, known_keys, takes_null
from configs.read_files import read_yaml
from configs.schema import RunConfig
from configs.strange_kwargs import NAMES, without_strange_kwargs
from configs.trust import FLAG, judge, lies_in_run

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

RECIPES = Path(__file__).resolve().parent
DEFAULT_RECIPE = RECIPES / "mnist.yaml"
SWITCHES = ("profile",)
"""Groups that are switched on by their bare flag: `--profile` is `--profile.enabled=true`."""


def build_parser(prog: str, description: str) -> ArgumentParser:
    """A jsonargparse parser with `--config`, `--print_config` and every key of RunConfig."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=prog, description=description, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file of the run: a path, or the name of a recipe in configs/ (default: mnist). "
        f"One that lies in a run directory may name code of one's own only with {FLAG}.",
    )
    parser.add_class_arguments(RunConfig)
    return parser


def load_config(
    argv: Sequence[str], *, prog: str, description: str, of_run: bool = False
) -> RunConfig:
    """Parse a command line. Overrides win over `--config` wherever they stand on the line.

    From then on this process imports what the user names, and nothing that only the config of a run
    directory names (configs/trust.py).

    Args:
        argv: Arguments after the program's name.
        prog: Program name shown by `--help`.
        description: First line of `--help`.
        of_run: The config files are of a run directory, wherever they lie.

    Raises:
        InputError: For an unknown key, a wrong type or range, or an unreadable file.
        SystemExit: With status 0, after `--help` or `--print_config`.
    """
    import argparse

    if not {"-h", "--help"}.isdisjoint(argv):
        from configs.help import asked_for, help_page

        print(help_page(asked_for(argv), prog, description))
        raise SystemExit(0)
    paths, rest = _split_config([token for token in argv if token != FLAG])
    files = [_find_recipe(path) for path in paths] or [DEFAULT_RECIPE]
    files = [file for file in files if _check_file(file)]
    _check_flags(rest)
    parser = build_parser(prog, description)
    try:
        config = _instantiate(parser, parser.parse_args(without_strange_kwargs(files, rest)))
    except (argparse.ArgumentError, ArithmeticError, RecursionError) as error:
        raise _translate(str(error)) from None
    foreign = [] if FLAG in argv else [file for file in files if of_run or lies_in_run(file)]
    for file in judge(files, foreign, rest):
        find_beside(file, flatten(config).values())
    return config


def load_keys(keys: dict[str, Any], *, config: str | None, also: Sequence[str] = ()) -> RunConfig:
    """The keys that a program gives, nested, over those of a config file or the schema's defaults.

    Arguments of the file's model, data set, task, optimizer or schedule are dropped where the
    program names another one.

    Args:
        keys: As in a YAML file.
        config: A file or a recipe.
        also: Further names to choose the closest from, for an unknown key.

    Raises:
        InputError: As `load_config` does.
    """
    import argparse

    files = [file for file in [_find_recipe(config)] if _check_file(file)] if config else []
    _check_keys(keys, " in fit()", also)
    parser = build_parser("fit", "")
    try:
        namespace = parser.parse_args(without_strange_kwargs(files, []))
        for group, name in NAMES.items():
            given, known = keys.get(group, {}), namespace[group][name]
            if "kwargs" not in given and given.get(name, known) != known:
                namespace[group]["kwargs"] = {}
        loaded = _instantiate(parser, parser.parse_object(keys, namespace))
    except (argparse.ArgumentError, ArithmeticError, RecursionError) as error:
        raise _translate(str(error)) from None
    foreign = [] if FLAG in sys.argv else [file for file in files if lies_in_run(file)]
    for file in judge(files, foreign, [str(keys)]):
        find_beside(file, flatten(loaded).values())
    return loaded


def _instantiate(parser: ArgumentParser, namespace: Any) -> RunConfig:
    groups = vars(parser.instantiate(namespace))
    return RunConfig(**{item.name: groups[item.name] for item in fields(RunConfig)})


def _split_config(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take `--config X` and `--config=X` out of a command line, and spell out switches."""
    paths: list[str] = []
    rest: list[str] = []
    tokens = iter(argv)
    for token in tokens:
        if token == "--config":
            path = next(tokens, None)
            if path is None:
                raise InputError("--config", expected="a YAML file after it")
            paths.append(path)
        elif token.startswith("--config="):
            paths.append(token.partition("=")[2])
        elif token.startswith("--") and token[2:] in SWITCHES:
            rest.append(f"{token}.enabled=true")
        else:
            rest.append(token)
    return paths, rest


def _find_recipe(given: str) -> Path:
    """A path as given, else a recipe of that name, so that any working directory will do."""
    name, folder = Path(given).name, str(Path(given).parent)
    candidates = [Path(given)]
    if folder in (".", "configs"):
        candidates += [RECIPES / name, RECIPES / f"{name}.yaml"]
    for path in candidates:
        if os.path.isfile(path):  # false for what can be no name
            return path
    known = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    own = [
        path
        for path in (Path(f"{given}.yaml"), Path("configs", f"{name}.yaml"))
        if os.path.isfile(path)
    ]
    closest = f"Did you mean '{own[0]}'?" if own else did_you_mean(name, known)
    raise InputError(
        "--config",
        given=given,
        expected="a YAML file that is there",
        remedy=f"{closest} Recipes in configs/: {', '.join(known)}.",
    )


def _check_file(path: Path) -> bool:
    """Refuse unreadable YAML and unknown keys, naming the closest known one; False if empty."""
    content = read_yaml(path)
    if content is None:
        return False
    if not isinstance(content, dict):
        raise InputError(
            str(path), given=content, expected="a mapping of config keys, such as `seed: 0`"
        )
    _check_keys(content, f" in {path}")
    return True


def _check_keys(content: dict[Any, Any], where: str, also: Sequence[str] = ()) -> None:
    known = known_keys()
    for key, value in _file_items(content, ""):
        if key not in known:
            raise _unknown(key, [*known, *also], where)
        # jsonargparse would let null pass as "not given".
        if value is None and not is_group(key) and not takes_null(key):
            raise InputError(key, given="null", expected=describe(hint_of(key)))


def _file_items(content: dict[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        key = f"{prefix}{name}"
        yield key, value
        if is_group(key):
            if not isinstance(value, dict):
                raise InputError(key, given=value, expected="a mapping of keys under it")
            yield from _file_items(value, f"{key}.")


def _check_flags(argv: Sequence[str]) -> None:
    known = known_keys()
    previous = ""
    for token in argv:
        key = token[2:].partition("=")[0].rstrip("+")
        if token.startswith("--") and not key.startswith(("help", "print_config")):
            # A mapping with keys of the user's own, such as model.kwargs.
            open_key = any(key.startswith(f"{name}.") and is_mapping(name) for name in known)
            if key not in known and not open_key:
                raise _unknown(key, known, " on the command line")
            if is_group(key):
                raise InputError(f"--{key}", expected=f"one of its keys, such as --{key}.KEY VALUE")
        elif not token.startswith("-") and (not previous.startswith("--") or "=" in previous):
            is_config = Path(token).suffix in (".yaml", ".yml") or os.path.isfile(
                RECIPES / f"{token}.yaml"
            )
            raise InputError(
                f"argument {token!r}",
                expected="options of the form --key value",
                remedy=f"Did you mean '--config {token}'?" if is_config else SEE_HELP,
            )
        previous = token


SEE_HELP = "`convoy train --help all` lists every key."


def _unknown(key: str, known: list[str], where: str) -> InputError:
    leaf = key.rpartition(".")[2]
    namesakes = [name for name in known if name.rpartition(".")[2] == leaf]
    guess = did_you_mean(key, known) or did_you_mean(key, namesakes, cutoff=0.0)
    return InputError(f"unknown config key {key!r}{where}", remedy=f"{guess} {SEE_HELP}")


def _translate(message: str) -> InputError:
    """jsonargparse's words -> given, expected, remedy."""
    key = re.search(r'Parser key "([^"]+)"', message)
    given = re.search(r"(?:Got value|Given value): (.*)", message)
    if key and given and (hint := hint_of(key[1])) is not None and not is_dataclass(hint):
        return InputError(key[1], given=given[1], expected=describe(hint))
    return InputError(" ".join(message.split()), remedy=SEE_HELP)
