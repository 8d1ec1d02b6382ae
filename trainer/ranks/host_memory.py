"""Memory of this process: on huge pages, and kept once it is taken.

glibc gives larger blocks back to the system as soon as they are free. A step that needs them again
pays a page fault for every 4 KiB, in which the system clears them: a quarter of the processor time
of a small convolutional network. And a page of 4 KiB is an entry in the processor's table of
addresses each, of which there are too few for a data set that is read in random order, above all in
a virtual machine. No result changes.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# malloc.h and sys/mman.h
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
HUGE_PAGES = 14
HUGE_PAGE_BYTES = 1 << 21
KEEPING = {MMAP_THRESHOLD: 1 << 25, TRIM_THRESHOLD: -1, TOP_PAD: 1 << 26}
USUAL = {MMAP_MAX: 65536, MMAP_THRESHOLD: 1 << 25, TRIM_THRESHOLD: 1 << 26, TOP_PAD: 1 << 17}
"""What glibc arrives at by itself in a process that has freed a block of 32 MiB."""
MOST_RESERVED_BYTES, PART_RESERVED = 1 << 30, 1 / 8
"""Of addresses: at most so many, and so much of the machine's memory. The gaps between blocks that
are kept are as large as the blocks, so what they can waste has to end somewhere."""
OWN_WAYS = (
    "GLIBC_TUNABLES",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
)
"""Variables by which somebody has decided already."""
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


@contextmanager
def freed_memory_kept(device: torch.device, ranks: int) -> Iterator[None]:
    """`keep_freed_memory` as long as this lasts; then what is free goes back to the system."""
    library = keep_freed_memory(device, ranks)
    try:
        yield
    finally:
        if library is not None:
            for option, value in USUAL.items():
                library.mallopt(option, value)
            library.malloc_trim(0)


def keep_freed_memory(device: torch.device, ranks: int = 1) -> ctypes.CDLL | None:
    """From now on what a process frees that computes on a CPU is kept for what it needs next.

    Addresses are reserved, which takes no memory; blocks for which these have no room are kept up
    to 32 MiB. Nothing is done where the C library is another one, or where variables of the
    environment say how it allocates.

    Args:
        device: Where it computes.
        ranks: Those of this machine, which share its memory.

    Returns:
        The C library, if anything was done.
    """
    library = glibc() if device.type == "cpu" else None
    if library is None or any(name in os.environ for name in OWN_WAYS):
        return None
    for option, value in KEEPING.items():
        library.mallopt(option, value)
    if addresses_are_free():
        reserve(library, min(MOST_RESERVED_BYTES, int(memory_bytes() * PART_RESERVED / ranks)))
    return library


def memory_bytes() -> int:
    """What this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def glibc() -> ctypes.CDLL | None:
    """The C library of this process, if it is GNU's and nothing allocates in its place."""
    if sys.platform != "linux" or "malloc" in os.environ.get("LD_PRELOAD", ""):
        return None
    library = ctypes.CDLL(None)
    if not all(hasattr(library, name) for name in ("gnu_get_libc_version", "malloc_trim")):
        return None
    library.malloc.restype = library.sbrk.restype = ctypes.c_void_p
    library.malloc.argtypes, library.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    library.sbrk.argtypes = [ctypes.c_ssize_t]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library


def addresses_are_free() -> bool:
    """Whether addresses may be reserved without the memory behind them."""
    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    if any(resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in limits):
        return False
    try:
        return OVERCOMMIT.read_text().strip() != "2"
    except OSError:
        return True


def reserve(library: ctypes.CDLL, size: int) -> None:
    """Let the heap grow by so many bytes at once, on huge pages once they are written to.

    The heap is one area to the system, and only what it holds by now can be given huge pages.
    """
    library.mallopt(MMAP_MAX, 0)  # or so large a block would not be of the heap
    block = library.malloc(size)
    library.free(block)
    library.mallopt(MMAP_MAX, USUAL[MMAP_MAX])
    if block is None or block + size > library.sbrk(0):
        return  # there was no room for it, or another allocator answers
    first = -(-block // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    library.madvise(first, block + size - first, HUGE_PAGES)
