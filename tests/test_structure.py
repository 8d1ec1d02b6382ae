"""The shape of the project: who may import whom, and how long a part of it may be."""

from __future__ import annotations

import ast
import graphlib
import runpy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from configs.keys import known_keys
from tests.support.processes import ROOT
from tests.support.source_code import (
    LIBRARIES,
    Import,
    dependencies,
    imports,
    long_functions,
    module_name,
    parsed,
    sources,
    walk,
)

MAY_IMPORT = {
    "configs": {"configs"},
    "data": {"configs", "data"},
    "trainer": {"configs", "data", "trainer"},
    "launch": {"configs", "data", "trainer", "launch"},
    "convoy": {"trainer", "launch", "convoy"},
}
OWN = {*MAY_IMPORT, "tests", "benchmarks"}
MAX_LINES, MAX_FUNCTION_LINES = 300, 60
ROOMS = (
    "ranks",
    "networks",
    "objective",
    "optim",
    "backward",
    "engines",
    "checkpoints",
    "records",
    "profiling",
)
"""Of trainer/, each of which imports only rooms before it. The files of trainer/ itself, which are
the run, import them all; so does cuda_graphs, which records one of those files: the step."""


def offenders(packages: Iterable[str], forbidden: Callable[[Path, Import], bool]) -> list[str]:
    """Each import that a law forbids, as `file: module`."""
    return [
        f"{path}: {item.module}"
        for path in sources(*packages)
        for item in imports(path)
        if forbidden(path, item)
    ]


def test_every_package_has_an_empty_init() -> None:
    """Law: importing a module imports nothing it does not name; but `from convoy import fit`."""
    folders = set(MAY_IMPORT) - {"convoy"}
    inits = {path: (ROOT / path).read_text() for path in sources(*folders)}
    inits = {path: text for path, text in inits.items() if path.name == "__init__.py"}
    assert {Path(package, "__init__.py") for package in folders} <= set(inits)
    assert {path: text for path, text in inits.items() if text.strip()} == {}


def test_imports_point_in_one_direction() -> None:
    """Law: configs <- data <- trainer <- launch <- convoy, inside functions and for types too."""

    def forbidden(path: Path, item: Import) -> bool:
        return item.package in OWN - MAY_IMPORT[path.parts[0]]

    assert offenders(MAY_IMPORT, forbidden) == []


def test_nothing_imports_commands_or_benchmarks() -> None:
    """Law: but benchmarks, which may import anything, and tests."""
    commands = {"launch", "benchmarks"}
    assert offenders(LIBRARIES, lambda path, item: item.package in commands) == []
    assert offenders(["launch"], lambda path, item: item.package == "benchmarks") == []


def test_no_cycles_between_modules() -> None:
    """Law: the modules can be put in an order in which each imports only earlier ones."""
    files = {module_name(path): path for path in sources(*MAY_IMPORT)}
    graph = {name: dependencies(path, set(files)) for name, path in files.items()}
    assert sum(map(len, graph.values())) > len(graph), "the graph has edges at all"
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert sorted(order) == sorted(files)


def room(module: str) -> str:
    """Where a module of trainer/ lives: in a folder, or among the files that are the run."""
    parts = module.split(".")
    return parts[1] if (ROOT / "trainer" / parts[1]).is_dir() else "the run"


def test_every_room_of_the_trainer_has_its_place_in_the_order() -> None:
    folders = {path.parent.name for path in (ROOT / "trainer").glob("*/__init__.py")}
    assert folders == {*ROOMS, "cuda_graphs"}


@pytest.mark.parametrize("name", [*ROOMS, "cuda_graphs"])
def test_a_room_of_the_trainer_imports_only_rooms_before_it(name: str) -> None:
    """Law: there are no circles between rooms, and none but cuda_graphs knows of the run."""
    files = {module_name(path): path for path in sources("trainer")}
    del files["trainer"]
    mine = {module: path for module, path in files.items() if room(module) == name}
    before = set(ROOMS if name == "cuda_graphs" else ROOMS[: ROOMS.index(name)]) | {name}
    allowed = {module for module in files if room(module) in before}
    allowed |= {"trainer.step"} if name == "cuda_graphs" else set()
    assert mine
    assert [
        f"{path}: {found}"
        for path in mine.values()
        for found in sorted(dependencies(path, set(files)) - allowed)
    ] == []


def test_no_two_files_have_the_same_name() -> None:
    """Law: a name that is looked for leads to one file."""
    found = defaultdict(list)
    for path in sources(*MAY_IMPORT, "benchmarks"):
        found[path.name].append(str(path))
    del found["__init__.py"]
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_test_modules_import_none_of_their_kind() -> None:
    """Law: what tests share is in tests/support, or beside them in a file that is no test."""
    assert len(sources("tests")) > 50
    found = offenders(
        ["tests"],
        lambda path, item: any(
            part.startswith("test_") or part == "conftest"
            for part in (*item.module.split("."), *item.names)
            if item.package == "tests"
        ),
    )
    assert found == []


@pytest.mark.parametrize(
    "package",
    [
        "configs",
        "data",
        "trainer",
        "launch",
        "convoy",
        "benchmarks",
    ],
)
def test_every_function_is_short_enough_to_be_read(package: str) -> None:
    found: dict[str, int] = {}
    for path in sources(package):
        found |= long_functions(path, MAX_FUNCTION_LINES)
    assert found == {}


def test_every_file_is_short_enough_to_be_read() -> None:
    lengths = {
        str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines())
        for path in sources(*MAY_IMPORT, "benchmarks")
    }
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_every_file_can_be_installed_under_convoy() -> None:
    """Law: there it imports this project from `convoy` alone, and is the same but for that."""
    under_convoy = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")["under_convoy"]
    for path in sources(*MAY_IMPORT):
        source = (ROOT / path).read_text(encoding="utf-8")
        installed = under_convoy(source, str(path))
        packages = {item.package for item in walk(ast.parse(installed), True)}
        assert not packages & set(MAY_IMPORT) - {"convoy"}
        assert installed.replace("from convoy.", "from ") == source.replace("from convoy.", "from ")
    strings = (
        'x = "from data.order import y"\nif x:\n    from data.order import (\n        y,\n    )\n'
    )
    assert under_convoy(strings, "") == strings.replace("    from data", "    from convoy.data")
    with pytest.raises(SyntaxError, match=r"write `from configs\.load import"):
        under_convoy("import configs.load", "file.py")


def test_no_string_names_a_module_of_the_project() -> None:
    """Law: it would be another one where the project is installed (configs/own_modules.py)."""
    modules = {module_name(path) for path in sources(*MAY_IMPORT)} - set(MAY_IMPORT)
    prefixes = {f"{package}." for package in MAY_IMPORT} - {"data."}  # of config keys
    modules -= set(known_keys())

    def strings(node: ast.AST) -> Iterator[str]:
        """Those that are no part of an f-string, which may begin with the prefix."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Constant) and isinstance(child.value, str):
                yield child.value
            elif not isinstance(child, ast.JoinedStr):
                yield from strings(child)

    assert [
        f"{path}: {text}"
        for path in sources(*MAY_IMPORT)
        for text in strings(parsed(path))
        if text.partition(":")[0] in modules or text in prefixes
    ] == []


def test_only_one_file_imports_accelerate() -> None:
    only = Path("trainer/engines/accelerate.py")
    found = offenders(MAY_IMPORT, lambda path, item: item.package == "accelerate" and path != only)
    assert found == []


def test_optional_and_slow_packages_are_imported_where_they_are_used() -> None:
    """Law: a run without W&B, a live display or plots does not pay for them, nor need them."""
    slow = {"wandb", "rich", "matplotlib"}
    found = offenders(MAY_IMPORT, lambda path, item: item.at_module_level and item.package in slow)
    assert found == []


def test_the_walker_sees_every_kind_of_import() -> None:
    """The tests above are as good as the walker: it tells where each import stands."""
    source = """
import a.b
from c import d
if TYPE_CHECKING:
    import e
try:
    import f
except ImportError:
    pass
class G:
    import h
    def method(self):
        from i import j
def k():
    def inner():
        import m
"""
    found = {item.module: item.at_module_level for item in walk(ast.parse(source), True)}
    expected = {"a.b": True, "c": True, "f": True, "h": True}
    assert found == expected | {"e": False, "i": False, "m": False}
