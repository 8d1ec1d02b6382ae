"""Is there room where the run will be written, and how fast does a write reach the disk."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from launch.diagnosis.findings import Check, Finding

GIB = 2**30
MIB = 2**20
SLOW_FSYNC_SECONDS = 0.5


def check_disk(output_dir: str) -> list[Finding]:
    """Space for checkpoints, and what it costs to flush one to the disk."""
    folder = Path(output_dir).expanduser().resolve()
    while not folder.is_dir():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    seen = f"{usage.free / GIB:.1f} GiB free in {folder}"
    space = Check("machine", "disk_space").ok(seen)
    if usage.free < GIB:
        space = Check("machine", "disk_space").judge(
            "problem" if usage.free < 64 * MIB else "warning",
            seen,
            "A checkpoint that does not fit is not written.",
            "free some space, or choose another --output_dir",
        )
    return [space, check_fsync(folder)]


def check_fsync(folder: Path) -> Finding:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
            file.write(os.urandom(MIB))
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            seconds = time.perf_counter() - began
    except OSError as error:
        return Check("machine", "disk_write").problem(
            f"cannot write to {folder} ({error.strerror})",
            "A run keeps its records and checkpoints there.",
            "choose another --output_dir, or change its permissions",
        )
    seen = f"writing 1 MiB through to the disk takes {seconds * 1e3:.0f} ms in {folder}"
    if seconds < SLOW_FSYNC_SECONDS:
        return Check("machine", "disk_write").ok(seen)
    return Check("machine", "disk_write").warning(
        seen,
        "Every record of a run and every checkpoint is flushed.",
        "choose an --output_dir on a faster disk, or save less often (--checkpoint.every_steps)",
    )
