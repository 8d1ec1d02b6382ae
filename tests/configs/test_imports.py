"""Objects named by import path: what is found, what is refused, and whose errors stay errors."""

from __future__ import annotations

import math
import os.path
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.errors import InputError
from configs.imports import call_with, find_beside, import_object, is_import_path, pip_line
from tests.support.processes import ROOT
from tests.support.source_code import sources


def refusal(path: str) -> str:
    with pytest.raises(InputError) as caught:
        import_object("model.name", path)
    message = str(caught.value)
    assert message.startswith("model.name: given ")
    assert repr(path) in message
    return message


@pytest.mark.parametrize(
    ("name", "expected"), [("a.b:C", True), ("a:b", True), ("mnist", False), ("a.b.C", False)]
)
def test_a_colon_makes_an_import_path(name: str, expected: bool) -> None:
    assert is_import_path(name) is expected


def test_the_object_itself_is_returned() -> None:
    assert import_object("k", "math:sqrt") is math.sqrt
    assert import_object("k", "os:path.join") is os.path.join
    assert import_object("k", "collections.abc:Callable") is Callable


def test_a_module_in_the_working_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: the folder a command is started in need not be on PYTHONPATH."""
    name = "imports_of_user"
    (tmp_path / f"{name}.py").write_text("ANSWER = 42\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    assert import_object("k", f"{name}:ANSWER") == 42
    del sys.modules[name]


def test_the_working_directory_shadows_no_installed_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('shadowed')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert callable(import_object("k", "colorsys:rgb_to_hsv"))


@pytest.mark.parametrize(
    "path", [":attribute", "module:", ":", ".relative:thing", "..relative:thing"]
)
def test_half_a_path_and_a_relative_one_are_refused(path: str) -> None:
    assert "`package.module:attribute`" in refusal(path)


@pytest.mark.parametrize("path", ["no_such_module:x", "os.no_such_module:x", "math.sub:x"])
def test_a_module_that_is_not_there_is_refused_by_name(path: str) -> None:
    missing = path.partition(":")[0]
    assert f"No module {missing!r}" in refusal(path)


def test_an_attribute_that_is_not_there_is_refused_by_name(
    module: Callable[[str], str],
) -> None:
    name = module("class Net: pass\nthing = Net()\ntable = {}\n")
    assert "an attribute 'Nett'" in refusal(f"{name}:Nett")
    assert "an attribute 'Inner'" in refusal(f"{name}:Net.Inner")
    for instance in ("thing", "table"):
        assert "an attribute 'missing'" in refusal(f"{name}:{instance}.missing")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import no_such_dependency\n", ModuleNotFoundError),
        ("raise RuntimeError('mine')\n", RuntimeError),
        ("def broken(:\n", SyntaxError),
    ],
)
def test_an_error_inside_the_users_module_keeps_its_own_traceback(
    source: str, error: type[Exception], module: Callable[[str], str]
) -> None:
    """Law: only a wrong path is an input error; a bug in the user's file is shown as one."""
    with pytest.raises(error) as caught:
        import_object("k", f"{module(source)}:x")
    assert not isinstance(caught.value, InputError)


# -- names that are taken ------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own folder, which is the working directory and comes last on sys.path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    return tmp_path


def write(file: Path, source: str = "class Net: pass\n") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    return file


@pytest.mark.parametrize(
    ("path", "file", "taken", "kind"),
    [
        ("data.mynet:Net", "data/mynet.py", "data/__init__.py", "folder"),
        ("data.nets.small:Net", "data/nets/small.py", "data/__init__.py", "folder"),
        ("data.mynet:Net", "data/mynet/__init__.py", "data/__init__.py", "folder"),
        ("trainer.loading:Net", "trainer/loading.py", "trainer/__init__.py", "folder"),
        # Here a module of the name is found, but it is another one.
        ("trainer:Net", "trainer.py", "trainer/__init__.py", "file"),
        ("trainer:Net", "trainer/__init__.py", "trainer/__init__.py", "folder"),
        ("configs.errors:Net.Inner", "configs/errors.py", "configs/errors.py", "folder"),
        ("colorsys:Net", "colorsys.py", "colorsys.py", "file"),
        ("wave.nets:Net", "wave/nets.py", "wave.py", "folder"),
    ],
)
def test_a_file_that_another_package_hides_is_named_with_the_one_that_hides_it(
    folder: Path, path: str, file: str, taken: str, kind: str
) -> None:
    """Law: the message names both files and the way out."""
    assert "is hidden" not in refusal(path)
    write(folder / file)
    message, top = refusal(path), path.partition(":")[0].partition(".")[0]
    assert f" {folder / file} is hidden: " in message
    hides = re.search(r"is imported from (\S+)\. ", message)
    assert hides is not None
    assert Path(hides[1]).is_file()
    assert hides[1].endswith(f"/{taken}")
    assert not hides[1].startswith(str(folder))
    assert f"Give your {kind} {top!r} a name of its own, such as 'my_{top}'" in message
    assert "run from its folder" not in message


def test_the_way_out_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "data/mynet.py")
    refusal("data.mynet:Net")
    (folder / "data").rename(folder / "my_data")
    assert import_object("k", "my_data.mynet:Net").__name__ == "Net"
    for name in ("my_data", "my_data.mynet"):
        monkeypatch.delitem(sys.modules, name)


def test_a_hidden_file_is_looked_for_on_the_whole_path(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Law: beside the config file and on PYTHONPATH as well, not only where the command began."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    file = write(elsewhere / "data/mynet.py")
    assert "is hidden" not in refusal("data.mynet:Net")
    find_beside(elsewhere / "run.yaml", ["data.mynet:Net"])
    assert f"{file} is hidden" in refusal("data.mynet:Net")


@pytest.mark.parametrize("path", ["data.mynett:Net", "trainer:Nett", "colorsys:Ne", "absent:Net"])
def test_a_file_that_would_not_be_it_either_is_not_called_hidden(folder: Path, path: str) -> None:
    """Law: a misspelt name stays a misspelt name."""
    for file in ("data/mynet.py", "trainer.py", "colorsys.py"):
        write(folder / file)
    assert "is hidden" not in refusal(path)


def test_an_import_of_the_users_own_module_that_fails_on_a_taken_name_says_so(
    folder: Path, module: Callable[[str], str]
) -> None:
    """Law: it keeps its traceback, with the explanation under it."""
    file = write(folder / "data/mynet.py")
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'data\.mynet'") as caught:
        import_object("k", f"{module('from data.mynet import Net')}:Net")
    (note,) = caught.value.__notes__
    assert note.startswith(f"{file} is hidden: 'data' is imported from {ROOT}/data/__init__.py. ")


# -- calls ---------------------------------------------------------------------------------------


def wants_nothing() -> dict[str, Any]:
    return {}


def wants_seed(seed: int) -> dict[str, Any]:
    return {"seed": seed}


def wants_any(**kwargs: Any) -> dict[str, Any]:
    return kwargs


def wants_names(hiddenSize: int, *, root: str = "here") -> dict[str, Any]:  # noqa: N803
    return {"hiddenSize": hiddenSize, "root": root}


@pytest.mark.parametrize(
    ("target", "kwargs", "expected"),
    [
        (wants_nothing, {}, {}),
        (wants_seed, {}, {"seed": 5}),
        (wants_seed, {"seed": 6}, {"seed": 6}),
        (wants_any, {"x": 1}, {"x": 1}),  # whoever they are passed on to may refuse the others
        (wants_any, {"x": 1, "seed": 6}, {"x": 1, "seed": 6}),
        (wants_names, {"hiddenSize": 3}, {"hiddenSize": 3, "root": "r"}),
        (wants_names, {"hiddenSize": 3, "root": "mine"}, {"hiddenSize": 3, "root": "mine"}),
    ],
)
def test_offered_arguments_go_only_where_they_are_wanted_and_give_way(
    target: Callable[..., Any], kwargs: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Law: the user's arguments win, offered ones fill parameters of their name."""
    assert call_with("k", target, kwargs, {"seed": 5, "root": "r"}) == expected


@pytest.mark.parametrize(
    ("target", "kwargs", "said"),
    [
        (wants_nothing, {"depth": 3}, "'depth'"),
        (wants_names, {}, "'hiddenSize'"),
        (wants_names, {"hiddenSize": 1, "hiddenSizes": 2}, "'hiddenSizes'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_the_signature(
    target: Callable[..., Any], kwargs: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        call_with("model.kwargs", target, kwargs, {"seed": 5})
    message = str(caught.value)
    assert message.startswith(f"model.kwargs: given {kwargs!r}, expected arguments of ")
    assert f"{target.__name__}(" in message
    remedy = message.rpartition(". ")[2]
    assert said in remedy, "the name in the remedy is spelled as the user spells it"


@pytest.mark.parametrize("annotation", ["int", "NoSuchName", "math.no_such", "'two words'"])
def test_an_annotation_that_only_a_type_checker_understands_does_no_harm(
    annotation: str, module: Callable[[str], str]
) -> None:
    name = module(
        f"from __future__ import annotations\nimport math\ndef build(x: {annotation}): return x\n"
    )
    assert call_with("k", import_object("k", f"{name}:build"), {"x": 3}, {"seed": 5}) == 3


def test_a_type_error_of_the_target_itself_is_not_an_input_error() -> None:
    def broken(seed: int) -> None:
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        call_with("k", broken, {}, {"seed": 5})


def test_arguments_of_something_else_are_answered_with_the_way_to_drop_them() -> None:
    """Law: a recipe's arguments stay when only the name is changed, and the message says so."""

    def refused(key: str, kwargs: dict[str, Any]) -> str:
        with pytest.raises(InputError) as caught:
            call_with(key, wants_names, kwargs, {})
        return str(caught.value)

    drop = "give arguments of its own, or none with --model.kwargs '{}'."
    assert refused("model.kwargs", {"hiddenSize": 1, "dropout": 0.2}).endswith(drop)
    assert "--model.kwargs" not in refused("model.kwargs", {}), "it lacks one, and has none to drop"
    assert "--data.dataset" not in refused("data.dataset", {"dropout": 0.2}), "no such option"


def test_what_installs_an_extra_is_told_in_one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: beside the package, which has no constraints.txt, as in a checkout."""
    assert pip_line("wandb") == "pip install -c constraints.txt -e '.[wandb]'"
    monkeypatch.setattr("configs.imports.PREFIX", "convoy.")
    assert pip_line("wandb") == "pip install 'convoy[wandb]'"
    told = {
        path.as_posix()
        for path in sources("configs", "data", "trainer", "launch")
        if "'.[" in (ROOT / path).read_text()
    }
    assert told == {"configs/imports.py"}
