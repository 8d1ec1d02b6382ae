"""What becomes of memory that a rank frees, in a process of its own, as JSON.

In one that has ever been refused memory, as a tester's may have been, glibc gives the main thread
another arena than the heap.
"""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import torch

from benchmarks.measure.shared_model import resident_bytes
from trainer.ranks.host_memory import OWN_WAYS, freed_memory_kept, glibc

CPU = torch.device("cpu")
BYTES = 1 << 26


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


def reserved_with(name: str) -> int:
    os.environ[name] = "1"
    try:
        return reserved_bytes(CPU)
    finally:
        del os.environ[name]


def main() -> None:
    for name in OWN_WAYS:
        os.environ.pop(name, None)
    found: dict[str, object] = {"plain_faults": faults_of_a_block(4)}
    with freed_memory_kept(CPU, 1):
        faults_of_a_block(4)
        found["faults"] = faults_of_a_block(4)
        found["resident"] = resident_bytes()
    found["resident_afterwards"] = resident_bytes()
    with freed_memory_kept(CPU, 1):
        block = torch.ones(BYTES, dtype=torch.uint8)
        found["huge"] = huge_bytes(block)
        del block
    found["reserved"] = reserved_bytes(CPU)
    found["reserved_on_gpu"] = reserved_bytes(torch.device("cuda"))
    found["reserved_with"] = {name: reserved_with(name) for name in OWN_WAYS}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
