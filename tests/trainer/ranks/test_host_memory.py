"""What a run on a CPU frees is kept for what it needs next."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.diagnosis.check_machine import HUGE_PAGES_ARE
from tests.programs.kept_memory import BYTES
from tests.support.processes import ROOT, begin, wait
from trainer.ranks import host_memory
from trainer.ranks.host_memory import addresses_are_free, glibc

no_glibc = pytest.mark.skipif(glibc() is None, reason="GLIBC IS NOT THE C LIBRARY HERE")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    program = ROOT / "tests/programs/kept_memory.py"
    finished = wait(begin([sys.executable, str(program)], env={"PYTHONPATH": str(ROOT)}))
    assert finished.status == 0, finished.output
    measured: dict[str, Any] = json.loads(finished.stdout)
    return measured


@no_glibc
@pytest.mark.process
def test_a_freed_block_is_there_for_the_next_one(found: dict[str, Any]) -> None:
    """Law: four more blocks bring no page faults; when the run is over the memory goes back."""
    assert found["plain_faults"] > 1000
    assert found["faults"] < found["plain_faults"] / 50
    assert found["resident_afterwards"] < found["resident"] - BYTES // 2


@no_glibc
@pytest.mark.process
def test_it_lies_on_huge_pages(found: dict[str, Any]) -> None:
    if not HUGE_PAGES_ARE.exists() or "[never]" in HUGE_PAGES_ARE.read_text():
        pytest.skip("HUGE PAGES ARE OFF ON THIS MACHINE")
    assert found["huge"] >= BYTES // 2


@no_glibc
@pytest.mark.process
def test_who_says_how_to_allocate_is_heard(found: dict[str, Any]) -> None:
    """Law: by any of the variables; and a run on a GPU gives back what it copied there."""
    assert found["reserved"] > 1 << 28
    assert found["reserved_on_gpu"] == 0
    assert found["reserved_with"] == dict.fromkeys(host_memory.OWN_WAYS, 0)


@pytest.mark.parametrize("limit", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
def test_no_addresses_are_reserved_where_they_are_counted(limit: int) -> None:
    assert addresses_are_free()
    soft, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (1 << 45, hard))
    try:
        assert not addresses_are_free()
    finally:
        resource.setrlimit(limit, (soft, hard))


def test_nor_where_memory_is_promised_once_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "overcommit_memory"
    file.write_text("2\n")
    monkeypatch.setattr(host_memory, "OVERCOMMIT", file)
    assert not addresses_are_free()


def test_other_systems_and_allocators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")
        assert glibc() is None
    monkeypatch.setattr(sys, "platform", "darwin")
    assert glibc() is None
