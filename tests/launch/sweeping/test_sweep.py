"""A sweep trains its trials, goes on after a kill, and says which one is best, and on what."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.errors import InputError
from launch.sweep import main
from tests.support.processes import Finished, begin, launch, python_command, wait
from tests.support.runs import assert_same_bits, records, series

Arguments = Callable[..., list[str]]


def arguments(small: Arguments, folder: Path, *more: object) -> list[str]:
    """Of `small`, without the name of a single run."""
    common = [a for a in small("x", "--data.validation=0.2") if not a.startswith("--name")]
    return [*common, f"--output_dir={folder}", *map(str, more)]


def sweep(*options: object) -> Finished:
    return launch("launch/sweep.py", *options)


def result(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    return content


@pytest.mark.process
@pytest.mark.slow
def test_a_sweep_that_is_killed_ends_as_if_it_had_not_been(
    small: Arguments, tmp_path: Path
) -> None:
    """Law: the same trials, the same weights and the same choice; its trials die with it."""
    options = arguments(small, tmp_path, "--seeds=0..1", "--train.epochs=3")
    whole = sweep(*options, "--name=whole")
    assert whole.status == 0, whole.output
    killed = begin(python_command("launch/sweep.py", *options, "--name=cut"))
    run = tmp_path / "cut" / "trial_2"
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    wait(killed)
    again = sweep(*options, "--name=cut")
    assert again.status == 0, again.output
    assert result(tmp_path / "cut") == result(tmp_path / "whole")
    for name in ("trial_1", "trial_2"):
        assert_same_bits(tmp_path / "cut" / name, tmp_path / "whole" / name)
    assert "val/accuracy" in whole.stdout
    assert "test set itself" not in whole.stdout
    seen = launch("launch/compare.py", tmp_path / "cut")
    assert seen.status == 0, seen.output
    assert " 2 " in seen.stdout


@pytest.mark.process
@pytest.mark.slow
def test_halving_goes_on_with_what_is_best_on_validation_samples(
    small: Arguments, tmp_path: Path
) -> None:
    """Law: what is stopped at a rung has seen the schedule of its whole length."""
    path = tmp_path / "rates.yaml"
    rates = [1e-6, 3e-3, 1e-5, 1e-6]
    content = {
        "method": "grid",
        "metric": {"name": "eval/accuracy", "goal": "maximize"},
        "parameters": {"optimizer.lr": {"values": rates}, "train.epochs": {"value": 8}},
    }
    path.write_text(yaml.safe_dump(content))
    more = ("--train.epochs=9", "--halving=2", "--factor=2", "--jobs=2", "--name=s")
    found = launch("launch/sweep.py", path, *arguments(small, tmp_path, *more))
    assert found.status == 0, found.output
    folder = tmp_path / "s"
    assert result(folder)["best"]["trials"] == ["trial_2"]
    left = {t["name"]: t["epoch"] for t in result(folder)["trials"] if t["status"] == "left"}
    assert "trial_2" not in left
    assert sorted(left.values()) == [2, 2, 4], "rungs below the end that the file gives"
    assert result(folder)["metric"] == "val/accuracy"
    assert "after 2 epochs, by val/accuracy: 4 tried" in found.stdout
    assert "after 4 epochs, by val/accuracy: 2 tried, trial_2 go on" in found.stdout
    assert series(folder / "trial_2", "test/count") == [101]
    assert max(r["epoch"] for r in records(folder / "trial_1")) < 8
    assert "--optimizer.lr=0.003" in found.stdout


@pytest.mark.process
def test_a_stop_request_stops_the_trial_and_is_continued(small: Arguments, tmp_path: Path) -> None:
    options = arguments(small, tmp_path, "--seeds=0,1", "--train.epochs=2000", "--name=s")
    process = begin(python_command("launch/sweep.py", *options))
    deadline = time.monotonic() + 120
    while not (tmp_path / "s" / "trial_1" / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    finished = wait(process)
    assert finished.status == 75, finished.output
    assert "the same command continues" in finished.stdout
    status = json.loads((tmp_path / "s" / "trial_1" / "summary.json").read_text())["status"]
    assert status == "preempted"
    assert not (tmp_path / "s" / "trial_2").exists()


def test_a_config_that_a_trial_would_refuse_is_refused_before_the_first(
    small: Arguments, tmp_path: Path
) -> None:
    path = tmp_path / "s.yaml"
    content = {"method": "grid", "parameters": {"train.epochs": {"values": [1, -1]}}}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=r"trial_2: .*train\.epochs"):
        main([str(path), *arguments(small, tmp_path, "--name=s")])
    assert not (tmp_path / "s").exists()


@pytest.mark.process
@pytest.mark.slow
def test_trials_of_several_ranks_are_stopped_at_a_rung_and_refused(
    small: Arguments, tmp_path: Path
) -> None:
    """Law: torchrun's own status stands for none of its ranks'."""
    path = tmp_path / "rates.yaml"
    content = {"method": "grid", "parameters": {"optimizer.lr": {"values": [1e-6, 3e-3]}}}
    path.write_text(yaml.safe_dump(content))
    more = ("--train.epochs=300", "--halving=1", "--factor=2", "--nproc=2", "--name=s")
    found = sweep(path, *arguments(small, tmp_path, *more, "--train.max_steps=400"))
    assert found.status == 0, found.output
    assert "optimizer.lr 1e-06  preempted" in found.stdout
    assert result(tmp_path / "s")["best"]["trials"] == ["trial_2"]
    bad = arguments(small, tmp_path, "--seeds=0..1", "--nproc=2", "--name=t", "--data.root=none")
    refused = sweep(*bad)
    assert refused.status == 2, refused.output
    assert "trial_1" in refused.stderr
    assert not (tmp_path / "t" / "trial_2.log").exists()


@pytest.mark.process
def test_a_metric_that_no_run_records_is_refused_after_the_first(
    small: Arguments, tmp_path: Path
) -> None:
    path = tmp_path / "s.yaml"
    content = {
        "method": "grid",
        "metric": {"name": "val/acuracy"},
        "parameters": {"optimizer.lr": {"values": [1e-3, 3e-3]}},
    }
    path.write_text(yaml.safe_dump(content))
    found = sweep(path, *arguments(small, tmp_path, "--name=s"))
    assert found.status == 2, found.output
    assert "metric.name: given 'val/acuracy', expected one of" in found.stderr
    assert not (tmp_path / "s" / "trial_2.log").exists()


def test_seeds_alone_are_not_halved(small: Arguments, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--halving: expected several configs"):
        main(arguments(small, tmp_path, "--seeds=0..3", "--halving=1", "--name=s"))
    assert not (tmp_path / "s").exists()


def test_another_sweep_of_that_name_is_refused(small: Arguments, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "trials.json").write_text("{}")
    with pytest.raises(InputError, match="holds another sweep"):
        main(arguments(small, tmp_path, "--seeds=0..1", "--name=s"))


def test_a_file_or_seeds_and_not_both(tmp_path: Path) -> None:
    for options in ([], ["x.yaml", "--seeds=0..1"]):
        with pytest.raises(InputError, match="either a sweep file or --seeds"):
            main(options)
    with pytest.raises(InputError, match="not a readable YAML file"):
        main([str(tmp_path / "no.yaml")])


@pytest.mark.process
def test_slurm_gets_a_line_for_each_trial(
    small: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: the lines are overrides, and the array names its runs as the sweep does."""
    said = tmp_path / "said"
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {said}\necho 7\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    sites = tmp_path / "sites.yaml"
    sites.write_text(f"sites: {{here: {{partition: main, logs: {tmp_path}/logs}}}}\n")
    options = arguments(small, tmp_path, "--seeds=3..5", "--name=s", "--jobs=2", "--slurm")
    assert main([*options, f"--sites={sites}"]) == 0
    assert (tmp_path / "logs" / "7.json").is_file()
    lines = said.read_text().splitlines()
    assert {"--array=1-3%2", "--partition=main", "--parsable"} <= set(lines)
    script = next(index for index, line in enumerate(lines) if line.endswith("array.sbatch"))
    assert Path(lines[script + 1]).read_text() == "--seed=3\n--seed=4\n--seed=5\n"
    assert lines[-2:] == [f"--output_dir={tmp_path / 's'}", "--name=trial"]
