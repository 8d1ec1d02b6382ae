"""A name in a config leads to one factory, or to a message that helps."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.errors import InputError
from configs.registry import any_case, resolve

USER_MODULE = """
def factory():
    return 42


class Outer:
    class Inner:
        pass


number = 3
"""
TABLE: dict[str, Callable[..., object]] = {"mlp": dict, "resnet": list}


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An importable module of the user's; sys.path and sys.modules are put back afterwards."""
    name = "registry_user_module"
    (tmp_path / f"{name}.py").write_text(USER_MODULE)
    (tmp_path / "registry_broken_module.py").write_text("import a_package_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in (name, "registry_broken_module"):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, module)
    return name


@pytest.mark.parametrize("name", list(TABLE))
def test_a_short_name_is_looked_up(name: str) -> None:
    assert resolve("model.name", name, TABLE) is TABLE[name]


@pytest.mark.parametrize(("name", "closest"), [("mpl", "mlp"), ("resent", "resnet")])
def test_a_misspelt_name_is_answered_with_the_closest_one(name: str, closest: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve("model.name", name, TABLE)
    message = str(caught.value)
    assert message.startswith("model.name")
    assert repr(name) in message
    assert f"Did you mean {closest!r}?" in message


@pytest.mark.parametrize("name", ["zzzzzz", "", "MLPX9999999"])
def test_a_name_like_no_other_is_answered_with_all_of_them(name: str) -> None:
    with pytest.raises(InputError, match="one of mlp, resnet") as caught:
        resolve("model.name", name, TABLE)
    assert "Did you mean" not in str(caught.value)


def test_an_import_path_leads_to_its_attribute(user_module: str) -> None:
    assert resolve("model.name", f"{user_module}:factory", TABLE)() == 42
    assert resolve("model.name", f"{user_module}:Outer.Inner", TABLE).__name__ == "Inner"


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (":factory", "package.module:attribute"),
        ("{module}:", "package.module:attribute"),
        ("{module}:absent", "absent"),
        ("{module}:Outer.absent", "absent"),
        ("{module}:number", "callable"),
        ("no_such_module_anywhere:x", "no_such_module_anywhere"),
        ("{module}.sub:x", "{module}"),
    ],
)
def test_an_import_path_that_leads_nowhere_is_refused(
    user_module: str, path: str, named: str
) -> None:
    with pytest.raises(InputError, match=named.format(module=user_module)) as caught:
        resolve("model.name", path.format(module=user_module), TABLE)
    assert str(caught.value).startswith("model.name")


@pytest.mark.usefixtures("user_module")
def test_an_error_inside_the_users_module_stays_the_users() -> None:
    with pytest.raises(ModuleNotFoundError, match="a_package_nobody_has"):
        resolve("model.name", "registry_broken_module:x", TABLE)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("StepLR", "StepLR"),
        ("steplr", "StepLR"),
        ("STEPLR", "StepLR"),
        ("step", "step"),
        ("Step", "step"),
        ("stepper", "stepper"),
        ("steplr:StepLR", "steplr:StepLR"),
    ],
)
def test_a_name_in_any_case_is_spelled_as_in_the_table(name: str, expected: str) -> None:
    """Law: what the table does not have, and an import path, stays as it is given."""
    assert any_case(name, {"StepLR": dict, "step": list}) == expected
