"""Texts from outside are shown, and nothing obeys them."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from configs.errors import InputError, first_line, one_line
from configs.load import load_config
from configs.visible import csv_cell, is_unseen, plain, visible


@given(st.text())
def test_no_control_character_gets_through(text: str) -> None:
    """Law: and what holds none is shown as it is."""
    shown = visible(text)
    assert not any(is_unseen(char) and char not in "\n\t" for char in shown)
    if not any(map(is_unseen, text)):
        assert shown == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("a\x9bb", r"a\x9bb"),
        ("a\u202eb\u2028c", r"a\u202eb\u2028c"),
        ("\ud800", r"\ud800"),
        ("na\u00efve 数字 \u3000 \u06cc\u200c\u062e", "na\u00efve 数字 \u3000 \u06cc\u200c\u062e"),
        ("two\nlines\tand", "two\nlines\tand"),
    ],
)
def test_what_a_reader_sees(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert str(InputError("x", remedy=text)) == f"x. {shown}"


def test_markup_is_no_markup() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    console.print(plain("[bold]a[/bold] [link=x]b [/] \x1b[31m"))
    assert console.file.getvalue() == "[bold]a[/bold] [link=x]b [/] \\x1b[31m\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["=1+1", "+1-1", "-a", "@SUM(A1)", "\t=1", "\r=1", " =1", "=1e"])
def test_a_formula_is_a_text_in_a_spreadsheet(text: str) -> None:
    file = io.StringIO()
    csv.writer(file).writerow([csv_cell(text)])
    assert file.getvalue().lstrip('"').startswith("'")


@pytest.mark.parametrize("value", ["-1.5", "+3", "-inf", "1e-3", "-1e-3", "a=1", "", -1.5, 7, None])
def test_numbers_and_other_texts_stay(value: object) -> None:
    assert csv_cell(value) == value


@pytest.mark.parametrize("key", ["name", "output_dir", "data.root"])
@pytest.mark.parametrize("value", ["a\x1b[2J", "a\nb", "a\x00", "\u202ea", "\x7f"])
def test_names_that_would_not_be_seen_are_refused(key: str, value: str) -> None:
    with pytest.raises(InputError, match=rf"^{key}.*no control characters") as refused:
        load_config([f"--{key}={value}"], prog="", description="")
    assert visible(refused.value) == str(refused.value)


def test_what_an_error_says_fits_in_a_line() -> None:
    """Law: of a library, a file or a server, whose words may be many, odd or none."""
    odd = ValueError(f"two\n  lines\x1b[2J {'x' * 999}")
    assert one_line(odd).startswith("two lines\\x1b[2J xxx")
    assert one_line(odd, named=True).startswith("ValueError: two lines")
    assert len(one_line(odd)) < 310
    assert first_line(odd) == "two"
    assert one_line(ValueError()) == first_line(ValueError(" \n")) == "ValueError"
