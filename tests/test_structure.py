"""The shape of the project: who may import whom, and what importing must not do."""

from __future__ import annotations

import ast
import graphlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.support.processes import ROOT, start, wait

MAY_IMPORT = {
    "configs": {"configs"},
    "data": {"configs", "data"},
    "trainer": {"configs", "data", "trainer"},
    "launch": {"configs", "data", "trainer", "launch"},
}
OWN = {*MAY_IMPORT, "tests", "benchmarks"}
LIBRARIES = ("configs", "data", "trainer")
MAX_LINES = 300


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
def imports(path: Path) -> tuple[Import, ...]:
    return tuple(walk(ast.parse((ROOT / path).read_text(encoding="utf-8")), True))


def offenders(packages: Iterable[str], forbidden: Callable[[Path, Import], bool]) -> list[str]:
    """Each import that a law forbids, as `file: module`."""
    return [
        f"{path}: {item.module}"
        for path in sources(*packages)
        for item in imports(path)
        if forbidden(path, item)
    ]


def test_every_package_has_an_empty_init() -> None:
    """Law: importing a module imports nothing it does not name."""
    inits = {path: (ROOT / path).read_text() for path in sources(*MAY_IMPORT)}
    inits = {path: text for path, text in inits.items() if path.name == "__init__.py"}
    assert {Path(package, "__init__.py") for package in MAY_IMPORT} <= set(inits)
    assert {path: text for path, text in inits.items() if text.strip()} == {}


def test_imports_point_in_one_direction() -> None:
    """Law: configs <- data <- trainer <- launch, inside functions and for types too."""

    def forbidden(path: Path, item: Import) -> bool:
        return item.package in OWN - MAY_IMPORT[path.parts[0]]

    assert offenders(MAY_IMPORT, forbidden) == []


def test_nothing_imports_commands_or_benchmarks() -> None:
    """Law: but benchmarks, which may import anything, and tests."""
    commands = {"launch", "benchmarks"}
    assert offenders(LIBRARIES, lambda path, item: item.package in commands) == []
    assert offenders(["launch"], lambda path, item: item.package == "benchmarks") == []


def dependencies(path: Path, known: set[str]) -> set[str]:
    """Modules of the project that a file imports, wherever in the file."""
    found = set()
    for item in imports(path):
        submodules = {f"{item.module}.{name}" for name in item.names}
        found |= (submodules | {item.module}) & known
    return found


def test_no_cycles_between_modules() -> None:
    """Law: the modules can be put in an order in which each imports only earlier ones."""
    files = {module_name(path): path for path in sources(*MAY_IMPORT)}
    graph = {name: dependencies(path, set(files)) for name, path in files.items()}
    assert sum(map(len, graph.values())) > len(graph), "the graph has edges at all"
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert sorted(order) == sorted(files)


def test_every_file_is_short_enough_to_be_read() -> None:
    lengths = {
        str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines())
        for path in sources(*MAY_IMPORT, "benchmarks")
    }
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


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


# Watches what importing the modules does to a process that has already imported the libraries.
SIDE_EFFECTS = """
import importlib, json, multiprocessing, os, random, signal, sys, threading
import numpy, torch, torch.distributed

probes = []
for name in ("is_available", "device_count", "init", "_lazy_init", "current_device"):
    def probe(*args, _name=name, _real=getattr(torch.cuda, name), **kwargs):
        probes.append(_name)
        return _real(*args, **kwargs)
    setattr(torch.cuda, name, probe)

def state():
    return {
        "signal handlers": [str(signal.getsignal(n)) for n in sorted(signal.valid_signals())],
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "processes": len(multiprocessing.active_children()),
        "process group": torch.distributed.is_initialized(),
        "CUDA": [torch.cuda.is_initialized(), *probes],
        "environment": sorted(os.environ.items()),
        "working directory": os.getcwd(),
        "sys.path": list(sys.path),
        "sys.excepthook": str(sys.excepthook),
        "torch settings": [
            torch.get_num_threads(), torch.get_num_interop_threads(), torch.is_grad_enabled(),
            torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark, str(torch.get_default_dtype()),
        ],
        "random numbers": [
            torch.get_rng_state().tolist(), str(random.getstate()),
            numpy.random.get_state()[1].tolist(),
        ],
    }

before = state()
for module in sys.argv[1:]:
    importlib.import_module(module)
after = state()
print(json.dumps([name for name in before if before[name] != after[name]]))
"""


def side_effects(modules: list[str], script: str = SIDE_EFFECTS) -> list[str]:
    finished = wait(start([sys.executable, "-c", script, *modules]))
    assert finished.status == 0, finished.output
    changed: list[str] = json.loads(finished.stdout)
    return changed


@pytest.mark.process
def test_importing_has_no_side_effects() -> None:
    """Law: no signal handler, thread, process group, device probe or setting comes of an import."""
    needs_triton = {"trainer.backward.explicit.fused_head"}  # which comes with torch for GPUs only
    modules = {module_name(path) for path in sources(*LIBRARIES)} - needs_triton
    assert side_effects(sorted(modules)) == []


@pytest.mark.process
def test_side_effects_would_be_seen() -> None:
    """The test above can fail: a script that does what it forbids is caught."""
    guilty = (
        "signal.signal(signal.SIGTERM, lambda *_: None); torch.cuda.is_available(); "
        "threading.Thread(target=threading.Event().wait, daemon=True).start(); "
        "os.environ['LEAKED'] = '1'; torch.set_num_threads(torch.get_num_threads() + 1)"
    )
    script = SIDE_EFFECTS.replace("after = state()", f"{guilty}\nafter = state()")
    caught = side_effects([], script)
    expected = {"signal handlers", "threads", "CUDA", "environment", "torch settings"}
    assert set(caught) == expected
