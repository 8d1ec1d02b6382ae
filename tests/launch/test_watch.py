"""The command that follows runs in a browser."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.errors import InputError
from launch.watch import main
from tests.support.browser import CHROMIUM, Browser
from tests.support.processes import ROOT, start
from tests.support.sample_runs import rows, write_run

WATCH = [sys.executable, str(ROOT / "launch/watch.py")]


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[tuple[Any, str]]:
    """The command about a folder with a run that goes on and an empty one, and its address."""
    write_run(tmp_path / "runs/going", rows(1000), status="running")
    write_run(tmp_path / "runs/empty", [])
    process = start([*WATCH, "runs"], cwd=tmp_path)
    try:
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/[\w-]+/", line)
        assert found, line + process.stderr.read()
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.process
def test_a_record_is_on_the_page_within_two_seconds(
    watching: tuple[Any, str], tmp_path: Path
) -> None:
    """Law: curves, new runs and notes; and the command leaves no trace of how it was ended."""
    process, address = watching
    if CHROMIUM is None:
        pytest.skip("CHROMIUM IS NOT INSTALLED: the live page was not opened in a browser")
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(address)
        browser.wait_for("document.querySelectorAll('#panels-main canvas').length === 5")
        assert "left out: the run in runs/empty" in browser.evaluate("document.body.textContent")
        last = "curve([...state.runs.values()][0], 'train/loss', 'step').ys.at(-1)"
        with (tmp_path / "runs/going/metrics.jsonl").open("a") as file:
            file.write(json.dumps(rows(1, first_step=10_000)[0] | {"train/loss": 7.5}) + "\n")
        browser.wait_for(f"{last} === 7.5", seconds=2.0)
        write_run(tmp_path / "runs/another")
        browser.wait_for("document.querySelectorAll('#table tbody tr').length === 2", seconds=3.0)
        browser.evaluate("openDetails(['runs/going'])")
        browser.evaluate("document.querySelector('textarea').value = 'mine'")
        browser.evaluate("document.querySelector('dialog input[type=text]').value = 'a, b'")
        browser.evaluate("[...document.querySelectorAll('dialog button')].at(-1).click()")
        browser.wait_for("document.querySelectorAll('#table .tag').length === 2")
        for name in ("going", "another"):
            (tmp_path / "runs" / name / "metrics.jsonl").write_text("")
        no_runs = (
            "document.getElementById('subtitle').textContent.startsWith('no run has recorded')"
        )
        browser.wait_for(no_runs)
        assert browser.evaluate("document.getElementById('main').hidden")
        assert len(browser.evaluate("state.page.left_out")) == 3
        assert browser.errors == []
        assert all(request.startswith((address, "data:")) for request in browser.requests)
    finally:
        browser.close()
    kept = json.loads((tmp_path / "runs/going/notes.json").read_text())
    assert kept == {"note": "mine", "tags": ["a", "b"]}
    assert end(process, signal.SIGINT) == (0, "")


def end(process: Any, number: int) -> tuple[int, str]:
    """The status and the complaints of a command that is sent a signal."""
    process.send_signal(number)
    _, complaints = process.communicate(timeout=10)
    return process.returncode, complaints


@pytest.mark.process
def test_it_ends_quietly(watching: tuple[Any, str]) -> None:
    assert end(watching[0], signal.SIGTERM) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["no/runs"], "a folder with runs in it"), (["--port", "x"], "no port"), (["-p"], "-p")],
)
def test_what_it_cannot_do_is_said(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((InputError, SystemExit)) as caught:
        main(arguments)
    assert message in f"{caught.value}{capsys.readouterr().err}"
