"""Objects named by import path: `package.module:attribute`."""

from __future__ import annotations

import importlib
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.given import given_object, is_given, with_objects
from configs.own_modules import PREFIX, import_module
from configs.trust import require_trust

MOST = 8
"""Arguments that a message names."""


def is_import_path(name: str) -> bool:
    return ":" in name


def import_object(key: str, path: str) -> Any:
    """Import `package.module:attribute`, looking in the working directory too.

    Args:
        key: The config key that holds the path, for the message.
        path: The import path, or the reference to an object of this program (configs/given.py).

    Raises:
        InputError: If the path is malformed, names nothing, or only a run directory names it. An
            error inside the user's own module keeps its traceback.
    """
    if is_given(path):
        return given_object(key, path)
    require_trust(key, path)
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise InputError(key, given=path, expected="an import path `package.module:attribute`")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not missing or not f"{module_name}.".startswith(f"{missing}."):
            if hidden := _hidden(missing):  # from what the user's own module imports
                error.add_note(hidden)
            raise
        raise InputError(
            key,
            given=path,
            expected="an importable module",
            remedy=_hidden(module_name)
            or f"No module {missing!r}: keep it beside the config file, run from its "
            "folder, or put it on PYTHONPATH.",
        ) from None
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise InputError(
                key,
                given=path,
                expected=f"an attribute {name!r} in {_name(found)}",
                remedy=_hidden(module_name, name),
            )
        found = getattr(found, name)
    return found


def import_callable(
    key: str, path: str, expected: str, takes: int | None = None
) -> Callable[..., Any]:
    """The same for a class or function of the user's; `expected` is its protocol, for the message,
    `takes` how many arguments it is called with, if that is to be checked.

    Raises:
        InputError: As `import_object` does, and if it cannot be called so.
    """
    found = import_object(key, path)
    if not callable(found):
        raise InputError(key, given=path, expected=expected)
    function: Callable[..., Any] = found
    if takes is not None:
        require_takes(key, function, takes, expected)
    return function


def require_takes(
    key: str, function: Callable[..., Any], count: int, expected: str, named: Sequence[str] = ()
) -> None:
    """Refuse a callable of the user's that cannot be called with so many positional arguments, and
    with those of `named` that it has.

    Raises:
        InputError: With what it takes.
    """
    try:
        signature = signature_of(function)
    except (TypeError, ValueError):  # written in C: it has none
        return
    given_too = dict.fromkeys(name for name in named if name in signature.parameters)
    if reason := misfit(signature, *range(count), **given_too):
        given = f"{_name(function)}({argument_names(signature)}), called with {count} ({reason})"
        raise InputError(key, given=given, expected=expected)


def misfit(signature: inspect.Signature, *args: Any, **kwargs: Any) -> str:
    """Why a callable cannot be called so; empty if it can."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return ""


def argument_names(signature: inspect.Signature) -> str:
    """The first arguments by name, such as `inputs, mask=..., **options`."""
    stars: dict[Any, str] = {
        inspect.Parameter.VAR_POSITIONAL: "*",
        inspect.Parameter.VAR_KEYWORD: "**",
    }
    words = [
        f"{stars.get(p.kind, '')}{p.name}{'' if p.default is p.empty else '=...'}"
        for p in signature.parameters.values()
    ]
    return ", ".join([*words[:MOST], *(["..."] if len(words) > MOST else [])])


def _hidden(module: str, attribute: str = "") -> str:
    """Which file of the user's is not imported under its name, why not, and the way out.

    The first package of a name on sys.path hides the others: one of this project, an installed one
    or Python's own hides the user's in the working directory or further down sys.path.

    Args:
        module: The name, such as `data.mynet`.
        attribute: What the module that was found lacks, and the hidden one has; empty if no module
            was found.

    Returns:
        A remedy for a message; empty if nothing is hidden.
    """
    names = itertools.accumulate(module.split("."), "{}.{}".format)
    imported = [sys.modules[name] for name in names if name in sys.modules]
    if not imported:
        return ""
    file = getattr(imported[-1], "__file__", None)
    folders = [*getattr(imported[-1], "__path__", []), *([Path(file).parent] if file else [])]
    known = {Path(folder).resolve() for folder in folders}
    for other in _files_named(module):
        words = re.findall(r"\w+", other.read_text("utf-8", "replace"))
        if other.parent not in known and (not attribute or attribute in words):
            top = module.partition(".")[0]
            return (
                f"{other} is hidden: {imported[-1].__name__!r} is imported from "
                f"{file or next(iter(folders), 'Python itself')}. Give your "
                f"{'file' if other.stem == module else 'folder'} {top!r} a name of its own, such "
                f"as 'my_{top}', and import it by that name."
            )
    return ""


def _files_named(module: str) -> Iterator[Path]:
    """Source files that would be the module, if they came first on sys.path."""
    for folder in (Path.cwd(), *map(Path, sys.path)):
        place = folder.resolve().joinpath(*module.split("."))
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                yield file


def find_beside(config_file: Path, values: Iterable[Any]) -> None:
    """Let import paths among the values find modules that lie beside the config file."""
    folder = config_file.resolve().parent
    paths = [item for value in values for item in (value if isinstance(value, list) else [value])]
    names = [path.partition(":")[0].partition(".")[0] for path in paths if _may_name_module(path)]
    beside = any((folder / f"{name}.py").is_file() or (folder / name).is_dir() for name in names)
    if beside and str(folder) not in sys.path:
        sys.path.append(str(folder))


def _may_name_module(value: Any) -> bool:
    return isinstance(value, str) and is_import_path(value) and value[0].isidentifier()


class MissingExtra(InputError):
    """An optional package is not installed."""


def import_extra(module: str, extra: str) -> Any:
    """Import an optional package where it is needed.

    Args:
        module: The module, such as `PIL.Image`.
        extra: The extra of this project that installs it.

    Raises:
        MissingExtra: If it is not installed, with the command that does it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise MissingExtra(
            f"{error.name} is not installed for {sys.executable}",
            expected=f"the extra `{extra}`",
            remedy=f"Run `{pip_line(extra)}`.",
        ) from None


def pip_line(extra: str) -> str:
    """The command that installs an extra, beside this package or into this checkout."""
    whole = f"'convoy[{extra}]'" if PREFIX else f"-c constraints.txt -e '.[{extra}]'"
    return f"pip install {whole}"


def call_with(
    key: str,
    target: Callable[..., Any],
    kwargs: dict[str, Any],
    offered: dict[str, Any],
    *positional: Any,
) -> Any:
    """Call `target` with `kwargs` and with those of the `offered` arguments that it names.

    What only its `**kwargs` would take is not offered: whoever they are passed on to may refuse it.

    Raises:
        InputError: If the arguments do not fit its signature, which the message shows.
    """
    signature = signature_of(target)
    accepted = {name: v for name, v in offered.items() if name in named(signature)}
    arguments = {**accepted, **{name: with_objects(key, value) for name, value in kwargs.items()}}
    try:
        signature.bind(*positional, **arguments)
    except TypeError as error:
        reason = str(error)[:1].upper() + str(error)[1:]
        strange = not takes_any(signature) and not kwargs.keys() <= signature.parameters.keys()
        if strange and key.endswith(".kwargs"):  # they may be the recipe's own
            reason += f": give arguments of its own, or none with --{key} '{{}}'"
        raise InputError(
            key,
            given=kwargs,
            expected=f"arguments of {_name(target)}{signature}",
            remedy=f"{reason}.",
        ) from None
    return target(*positional, **arguments)


def signature_of(target: Callable[..., Any]) -> inspect.Signature:
    """What a callable takes."""
    try:
        return inspect.signature(target, eval_str=True)
    except Exception:  # an annotation may be anything, and only type checkers need resolve it
        return inspect.signature(target)


def named(signature: inspect.Signature) -> set[str]:
    """The arguments that can be given by name; those of `**kwargs` have none."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name for name, parameter in signature.parameters.items() if parameter.kind in kinds}


def takes_any(signature: inspect.Signature) -> bool:
    """Whether there is a `**kwargs`."""
    return any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())


def _name(thing: Any) -> str:
    return str(getattr(thing, "__name__", None) or type(thing).__name__)
