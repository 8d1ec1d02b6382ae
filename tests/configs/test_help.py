"""The pages of --help."""

from __future__ import annotations

import pytest

from configs.errors import InputError
from configs.help import COMMON, asked_for, help_page
from configs.identity import flatten
from configs.schema import RunConfig


def page(*argv: str) -> str:
    return help_page(asked_for(argv), "launch/train.py", "Train a model.")


def test_the_first_page_fits_a_screen_and_names_the_groups() -> None:
    lines = page("--seed", "1", "--help").splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    for name in ("data", "optimizer", "parallel", "--help GROUP", "--help all"):
        assert any(name in line for line in lines), name
    assert all(any(f"--{key} " in line for line in lines) for key in COMMON)
    assert "--nproc" not in page("--help"), "torchrun starts those"
    assert "--nproc N " in help_page("", "convoy train", "Train a model.")


@pytest.mark.parametrize("asked", ["logging", "--help"])
def test_a_group_has_its_keys_and_all_of_them_have_a_page(asked: str) -> None:
    shown = page("-h", "all") if asked == "--help" else page("--help", asked)
    keys = [key for key in flatten(RunConfig()) if asked == "--help" or key.startswith(asked)]
    assert keys
    assert [key for key in keys if f"  --{key}\n" not in shown] == []
    assert ("--optimizer.lr" in shown) == (asked == "--help")


def test_an_unknown_group_is_refused_with_the_closest() -> None:
    with pytest.raises(InputError, match=r"given 'optimiser'.*Did you mean 'optimizer'\?"):
        page("--help", "optimiser")
