"""What a run on a CPU frees is kept for what it needs next."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest
import torch

from trainer.ranks import host_memory
from trainer.ranks.host_memory import addresses_are_free, freed_memory_kept, glibc

CPU = torch.device("cpu")
BYTES = 1 << 26
HUGE_PAGES_ARE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
pytestmark = pytest.mark.skipif(glibc() is None, reason="GLIBC IS NOT THE C LIBRARY HERE")


def faults_of_a_block(count: int = 1) -> int:
    """Page faults while a large block is taken, written to, and freed again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.empty(BYTES, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def huge_bytes(block: torch.Tensor) -> int:
    """Bytes on huge pages in the area of addresses that the middle of a block lies in."""
    middle, inside = block.data_ptr() + block.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first:
            low, high = (int(bound, 16) for bound in first.split("-"))
            inside = low <= middle < high
        elif inside and first == "AnonHugePages:":
            return int(rest[0]) * 1024
    raise AssertionError("no area holds the block")


def reserved_bytes(device: torch.device) -> int:
    """How far the heap may grow for a run without asking the system again."""
    library = glibc()
    assert library is not None
    before = library.sbrk(0)
    with freed_memory_kept(device, 1):
        return int(library.sbrk(0) - before)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_a_freed_block_is_there_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: the second block brings no page faults; afterwards the memory goes back."""
    for name in host_memory.OWN_WAYS:
        monkeypatch.delenv(name, raising=False)
    with freed_memory_kept(CPU, 1):
        faults_of_a_block()
        assert faults_of_a_block(4) < 100
        kept = resident_bytes()
    assert resident_bytes() < kept - BYTES // 2


def test_it_lies_on_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: where the system has them, wherever the block begins."""
    if not HUGE_PAGES_ARE.exists() or "[never]" in HUGE_PAGES_ARE.read_text():
        pytest.skip("HUGE PAGES ARE OFF ON THIS MACHINE")
    for name in host_memory.OWN_WAYS:
        monkeypatch.delenv(name, raising=False)
    with freed_memory_kept(CPU, 1):
        block = torch.ones(BYTES, dtype=torch.uint8)
        assert huge_bytes(block) >= BYTES // 2
        del block


@pytest.mark.parametrize("name", host_memory.OWN_WAYS)
def test_who_says_how_to_allocate_is_heard(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reserved_bytes(CPU) > 1 << 28
    monkeypatch.setenv(name, "1")
    assert reserved_bytes(CPU) == 0


def test_a_gpu_leaves_host_memory_alone() -> None:
    """Law: what was copied to the device is given back."""
    assert reserved_bytes(torch.device("cuda")) == 0


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
