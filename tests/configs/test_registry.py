"""A name in a config leads to one factory, or to a message that helps."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from configs.errors import InputError
from configs.registry import any_case, resolve

TABLE: dict[str, Callable[..., object]] = {"mlp": dict, "resnet": list}


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


def test_an_import_path_leads_to_what_can_be_called() -> None:
    assert resolve("model.name", "os:path.join", TABLE) is os.path.join
    with pytest.raises(InputError, match=r"^model\.name: .*callable"):
        resolve("model.name", "math:pi", TABLE)
