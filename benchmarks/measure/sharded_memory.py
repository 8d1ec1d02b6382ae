"""Resident memory of a rank of a model that its ranks share, in parts of the weights it holds."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure.processes import run
from benchmarks.measure.results import show
from launch.entry import torchrun

RANKS = 8
SHARE_BYTES, QUICK_SHARE_BYTES = 64 << 20, 8 << 20
PROGRAM = Path(__file__).with_name("shared_model.py")
PLAIN_MALLOC = "MALLOC_MMAP_THRESHOLD_=65536"
"""glibc gives large tensors back as soon as they are freed: else they would count as held."""
WAYS = {"in parts": "true", "gathered": "false"}


def measure_sharded_memory(*, quick: bool, threads: int) -> dict[str, Any]:
    """Most memory of any rank beyond what it held, by way of saving and by what it did, in bytes.

    The weights are eight times what a rank holds of them; their optimizer's state is twice as much.
    """
    share = QUICK_SHARE_BYTES if quick else SHARE_BYTES
    found = {}
    for way, sharded in WAYS.items():
        print(f"{RANKS} ranks, checkpoints {way}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            launcher = ["env", PLAIN_MALLOC, *torchrun(RANKS)]
            command = [*launcher, str(PROGRAM), str(share), sharded, folder]
            finished = run(command, threads=max(1, threads // RANKS))
        found[way] = finished.last_json()
    return {"ranks": RANKS, "share_bytes": share, "peak_bytes": found}


def show_sharded_memory(found: dict[str, Any]) -> None:
    share, peaks = found["share_bytes"], found["peak_bytes"]
    phases = list(next(iter(peaks.values())))
    rows = [[phase, *(f"{peaks[way][phase] / share:.1f}" for way in peaks)] for phase in phases]
    title = (
        f"most memory of a rank, in parts of the weights ({share >> 20} MiB), of which a rank of "
        f"{found['ranks']} holds one"
    )
    show(title, ["", *peaks], rows)
