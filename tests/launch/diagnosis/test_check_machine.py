"""The checks of the machine, on planted files and in a process with planted limits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from launch.diagnosis.check_gpu import _driver_version
from launch.diagnosis.check_machine import (
    check_huge_pages,
    check_machine,
    check_memory,
    check_versions,
)
from tests.support.processes import ROOT, start, wait


@pytest.mark.process
def test_this_machine_can_train(tmp_path: Path) -> None:
    """Law: nothing is a problem where the tests run, and nothing is left in the folder."""
    found = check_machine(str(tmp_path / "not" / "there"))
    assert [finding for finding in found if finding.level == "problem"] == []
    assert list(tmp_path.iterdir()) == []
    assert len({finding.check for finding in found}) == len(found) >= 10


@pytest.mark.parametrize(
    ("modes", "level"),
    [("always madvise [never]\n", "note"), ("always [madvise] never\n", "ok"), (None, "ok")],
)
def test_huge_pages_that_are_off(tmp_path: Path, modes: str | None, level: str) -> None:
    file = tmp_path / "enabled"
    if modes is not None:
        file.write_text(modes)
    assert check_huge_pages(file).level == level


def test_other_versions_are_named(tmp_path: Path) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("# tested\ntorch==99.1.0\nnumpy==0.1\nnot-installed==1.0\n")
    finding = check_versions(constraints)
    assert finding.level == "warning"
    assert f"torch {torch.__version__}" in finding.seen
    assert "instead of 99.1.0" in finding.seen
    assert "not-installed" not in finding.seen
    constraints.write_text("numpy==0.1\n")
    assert check_versions(constraints).level == "note"


@pytest.mark.parametrize(("kib", "level"), [(4_000_000, "ok"), (100_000, "warning")])
def test_little_memory(tmp_path: Path, kib: int, level: str) -> None:
    path = tmp_path / "meminfo"
    path.write_text(f"MemTotal: 8000000 kB\nMemAvailable: {kib} kB\n")
    assert check_memory(path).level == level


def test_the_driver_is_read_from_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "version"
    assert _driver_version(path) is None
    path.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\n")
    assert _driver_version(path) == "535.183.01"


@pytest.mark.process
def test_planted_limits_are_found(tmp_path: Path) -> None:
    """Few open files, more threads than cores, no compiler, a folder that cannot be written."""
    output = tmp_path / "found.json"
    script = f"{sys.executable} {ROOT / 'launch/doctor.py'}"
    options = f"--output_dir=/proc/x --parallel.threads=64 --json={output}"
    command = f"ulimit -n 512 && exec {script} {options}"
    env = {"CXX": "", "PATH": "/nothing"}
    finished = wait(start(["/bin/bash", "-c", command], env=env))
    assert finished.status == 1, finished.output
    levels = {f["check"]: f["level"] for f in json.loads(output.read_text())["findings"]}
    assert levels["open_files"] == "warning"
    assert levels["cores"] == "warning"
    assert levels["compiler"] == "note"
    assert levels["disk_write"] == "problem"
    assert "ulimit -n" in finished.stdout
