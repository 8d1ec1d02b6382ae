"""What is drawn and said is ours: no warnings for letters, and no chatter of libraries."""

from __future__ import annotations

import warnings

import pytest

from launch.figure_files import png
from tests.support.processes import run_code


def test_letters_that_no_font_has_are_drawn_without_a_warning_for_each() -> None:
    figures = pytest.importorskip("matplotlib.figure")
    figure = figures.Figure(figsize=(2, 2))
    axes = figure.add_subplot()
    axes.set_title("鳥 と 猫 \u1f01f")
    axes.set_xticks([0, 1], ["번호", "ж"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert png(figure, dpi=50).startswith(b"\x89PNG")


@pytest.mark.process
def test_what_libraries_log_is_not_shown_and_their_warnings_are() -> None:
    """Law: such as `JAX version 0.10 available` of the data library, at every start."""
    program = """
import logging
from launch.entry import run_command
def main(argv):
    logging.getLogger("datasets").info("JAX version available")
    logging.getLogger("datasets").warning("something is wrong")
    logging.getLogger("convoy").info("ours")
    return 0
run_command(main)
"""
    done = run_code(program)
    assert done.stderr.splitlines() == ["something is wrong", "ours"]
