"""The table of config keys says what the schema says."""

from __future__ import annotations

import re

from configs.identity import flatten, identity
from configs.schema import RunConfig
from configs.table import config_page
from tests.support.processes import ROOT

ROW = re.compile(r"^\| `([\w.]+)` \| (.+) \| `(.+)` \| (.+) \| (yes|) \|$", re.MULTILINE)


def test_the_page_is_what_the_schema_says() -> None:
    """Law: after a change of the schema, `python -m configs.table > docs/config.md`."""
    assert (ROOT / "docs/config.md").read_text(encoding="utf-8") == config_page()


def test_every_key_has_one_row_with_a_whole_sentence() -> None:
    rows = [(key, meaning) for key, _, _, meaning, _ in ROW.findall(config_page())]
    assert sorted(key for key, _ in rows) == sorted(flatten(RunConfig()))
    assert [key for key, meaning in rows if not meaning.endswith(".")] == []


def test_the_page_marks_the_keys_that_define_a_run() -> None:
    """Law: the marked keys are those that the digest of a run is made of."""
    marked = [key for key, _, _, _, answer in ROW.findall(config_page()) if answer]
    assert sorted(marked) == sorted(identity(RunConfig()))
    assert "optimizer.lr" in marked
    assert "logging.every_steps" not in marked
