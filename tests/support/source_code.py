"""The project's own source code: its files, what they import, how long their parts are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.support.processes import ROOT

LIBRARIES = ("configs", "data", "trainer")


def sources(*packages: str) -> list[Path]:
    """Python files of the packages, with paths relative to the root."""
    found = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    return [path.relative_to(ROOT) for path in found]


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


@dataclass(frozen=True)
class Import:
    """One imported module, and whether importing the file imports it too."""

    module: str
    names: tuple[str, ...]
    at_module_level: bool

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def walk(node: ast.AST, at_module_level: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, (), at_module_level)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            names = tuple(alias.name for alias in child.names)
            yield Import(child.module or "", names, at_module_level)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from walk(child, False)
        else:
            yield from walk(child, at_module_level and not is_type_checking(child))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> tuple[Import, ...]:
    return tuple(walk(parsed(path), True))


def dependencies(path: Path, known: set[str]) -> set[str]:
    """Modules of the project that a file imports, wherever in the file."""
    found = set()
    for item in imports(path):
        submodules = {f"{item.module}.{name}" for name in item.names}
        found |= (submodules | {item.module}) & known
    return found


def long_functions(path: Path, most: int) -> dict[str, int]:
    """Functions of a file of more lines than that, decorators aside, as `file: name`."""
    lengths = {
        f"{path}: {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return {name: length for name, length in lengths.items() if length > most}
