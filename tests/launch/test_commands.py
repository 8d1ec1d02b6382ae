"""`convoy NAME`: the list, the closest name, and ranks that are started without a word too many."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.errors import InputError
from launch.commands import COMMANDS, overview, refuse, split_ranks
from tests.support.processes import ROOT, start, wait, wait_for_step
from tests.support.runs import assert_same_bits
from tests.support.source_code import imports, sources

Arguments = Callable[..., list[str]]
PROGRAMS = {"PYTHONPATH": str(ROOT / "tests/programs")}
NOT_LISTED = {"measure_link", "commands"}
"""What `benchmark` starts, and the list itself."""
CONVOY = [sys.executable, "-m", "convoy"]


def test_every_file_of_launch_that_is_a_command_is_in_the_list(
    capsys: pytest.CaptureFixture[str],
) -> None:
    programs = {
        path.stem
        for path in sources("launch")
        if len(path.parts) == 2 and 'if __name__ == "__main__":' in (ROOT / path).read_text()
    }
    assert {command.file for command in COMMANDS.values()} == programs - NOT_LISTED
    overview([])
    said = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"\n  {name:<11} {command.line}\n" in said
    assert max(map(len, said.splitlines())) <= 80


def test_the_list_imports_no_command() -> None:
    """Law: a command is imported when it is called."""
    own = {f"launch.{command.file}" for command in COMMANDS.values()}
    named = {item.module for item in imports(Path("launch/commands.py"))}
    assert not own & named


@pytest.mark.parametrize(
    ("given", "meant"), [("trian", "train"), ("prepare-data", "prepare"), ("findlr", "find-lr")]
)
def test_an_unknown_command_names_the_closest(given: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"Did you mean '{meant}'"):
        refuse([given])


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["help", "watch"], "usage: convoy watch"),
        (["version"], r"convoy .+, torch \d.+, Python 3"),
        (["-V"], "convoy "),
    ],
)
def test_other_ways_to_ask(words: list[str], expected: str) -> None:
    finished = wait(start([*CONVOY, *words]))
    assert finished.status == 0, finished.output
    assert re.match(expected, finished.stdout), finished.output


def test_ranks_are_asked_for_anywhere_on_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--config", "mnist", "--nproc", "4", "--seed=1"]
    assert split_ranks(words) == (4, ["--config", "mnist", "--seed=1"])
    assert split_ranks(["--nproc=2"]) == (2, [])
    assert split_ranks(["--seed=1"]) == (1, ["--seed=1"])
    for wrong in (["--nproc", "0"], ["--nproc=many"], ["--nproc"]):
        with pytest.raises(InputError, match="1 or more"):
            split_ranks(wrong)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match="under torchrun"):
        split_ranks(words)


@pytest.mark.process
def test_a_stopped_run_leaves_with_75_without_a_traceback_and_goes_on(
    small: Arguments, tmp_path: Path
) -> None:
    """Ctrl-C reaches all processes of a terminal at once."""
    command = ["env", "--unset=OMP_NUM_THREADS", *CONVOY, "train", "--nproc", "2"]
    faulty = ["--model.name=faulty:Net", '--model.kwargs={"hidden": [24, 16], "sleep": 0.01}']
    process = start([*command, *small("stopped", *faulty)], env=PROGRAMS)
    wait_for_step(tmp_path / "stopped", 8, process)
    os.killpg(process.pid, signal.SIGINT)
    stopped = wait(process)
    assert stopped.status == 75, stopped.output
    assert json.loads((tmp_path / "stopped/summary.json").read_text())["status"] == "preempted"
    noise = r"Traceback|OMP_NUM_THREADS|torch\.distributed|elastic|^[WE]\d{4} "
    assert not re.search(noise, stopped.output, re.MULTILINE), stopped.output
    for name in ("stopped", "whole"):
        finished = wait(start([*command, *small(name, *faulty)], env=PROGRAMS))
        assert finished.status == 0, finished.output
    assert_same_bits(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.process
def test_what_a_rank_says_is_said_once_and_its_status_is_that_of_the_command(
    small: Arguments, tmp_path: Path
) -> None:
    """A refusal by all ranks, an exception of one, and one that is killed; nothing stays behind."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    env = PROGRAMS | {"TMPDIR": str(folder)}

    def run(*options: str) -> tuple[int, str]:
        finished = wait(start([*CONVOY, "train", "--nproc=2", *small("run", *options)], env=env))
        assert "ChildFailedError" not in finished.output
        assert not [*folder.glob("convoy-*"), *folder.glob("torchelastic_*")]
        return finished.status, finished.output

    status, said = run("--model.name=nets_of_nobody:Net")
    assert (status, len(re.findall("error:", said))) == (2, 1), said
    for fault, expected in (("raise", 1), ("die", 128 + signal.SIGKILL)):
        kwargs = json.dumps({"hidden": [24, 16], "fault": fault})
        status, said = run(
            "--model.name=faulty:Net", f"--model.kwargs={kwargs}", "--checkpoint.resume=never"
        )
        assert status == expected, said
        shown = "KeyError: 'planted'" if fault == "raise" else "rank 1 was ended by SIGKILL"
        assert said.count(shown) == 1, said
