"""Is this machine fit to train on: versions, memory, limits, compiler, cores, disk."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sysconfig
from importlib import metadata
from pathlib import Path

import torch

from launch.diagnosis.check_cores import check_cores, check_load
from launch.diagnosis.check_disk import GIB, MIB, check_disk
from launch.diagnosis.check_gpu import check_gpu
from launch.diagnosis.findings import Check, Finding, name_some

ROOT = Path(__file__).resolve().parents[2]
FEW_FILES = 4096
HUGE_PAGES_ARE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PROGRAM = "#include <Python.h>\n#include <cmath>\nint main() { return std::isnan(0.0); }\n"


def check_machine(output_dir: str, *, workers: int = 0, ranks: int = 1) -> list[Finding]:
    """Look at the machine this process runs on.

    Args:
        output_dir: Folder of run directories; need not exist, and nothing is left in it.
        workers: Data workers per rank, which pass batches through shared memory.
        ranks: Ranks on this machine.
    """
    return [
        check_versions(ROOT / "constraints.txt"),
        *check_gpu(),
        check_shared_memory(workers * ranks),
        check_memory(),
        check_huge_pages(),
        check_open_files(),
        check_locked_memory(),
        check_compiler(),
        check_cores(ranks),
        check_load(ranks),
        *check_disk(output_dir),
    ]


def check_versions(constraints: Path) -> Finding:
    """Installed packages against those that the project is tested with."""
    seen = f"Python {platform.python_version()}, torch {torch.__version__}"
    try:
        lines = constraints.read_text(encoding="utf-8").splitlines()
    except OSError:
        return Check("machine", "versions").ok(seen)
    others, old = [], []
    for name, wanted in (line.split("==") for line in lines if "==" in line):
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if found.partition("+")[0] != wanted:
            others.append(f"{name} {found} instead of {wanted}")
            if name == "torch" and _numbers(found)[:2] < _numbers(wanted)[:2]:
                old.append(found)
    if not others:
        return Check("machine", "versions").ok(f"{seen}, all as in {constraints.name}")
    return Check("machine", "versions").judge(
        "warning" if old else "note",
        f"{seen}; {name_some(others)}",
        "The tests of this checkout ran with the versions of constraints.txt.",
        "pip install -c constraints.txt -e .",
    )


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.partition("+")[0].split(".") if part.isdecimal()]


def check_shared_memory(workers: int) -> Finding:
    """Data workers pass batches through it; a container often has 64 MiB."""
    folder = "/dev/shm"
    if not os.path.isdir(folder):
        return Check("machine", "shared_memory").note(f"there is no {folder}")
    usage = shutil.disk_usage(folder)
    seen = f"{folder} has {usage.total / GIB:.1f} GiB, {usage.free / GIB:.1f} GiB free"
    if usage.free >= (GIB if workers else GIB / 4):
        return Check("machine", "shared_memory").ok(seen)
    return Check("machine", "shared_memory").judge(
        "warning" if workers else "note",
        seen,
        "Data workers die with a bus error when it is full.",
        "docker run --shm-size=8g (or --ipc=host), or --data.workers 0",
    )


def check_memory(path: Path = Path("/proc/meminfo")) -> Finding:
    try:
        lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return Check("machine", "memory").note("the free memory could not be read")
    seen = f"{free / GIB:.1f} GiB of memory available"
    if free >= GIB:
        return Check("machine", "memory").ok(seen)
    return Check("machine", "memory").warning(
        seen,
        "A process that asks for more than there is gets killed without a message.",
        "end other processes, start fewer ranks, or lower --data.workers",
    )


def check_huge_pages(path: Path = HUGE_PAGES_ARE) -> Finding:
    """What a rank on a CPU computes with lies on huge pages, where the system gives them."""
    try:
        modes = path.read_text()
    except OSError:
        return Check("machine", "huge_pages").ok("the kernel does not speak of huge pages")
    if "[never]" not in modes:
        return Check("machine", "huge_pages").ok("the system gives huge pages")
    return Check("machine", "huge_pages").note(
        "the system gives no huge pages",
        "Steps on a CPU are slower without, above all in a virtual machine.",
        f"echo madvise | sudo tee {path}",
    )


def check_open_files() -> Finding:
    """Every worker, socket and file of a rank needs a descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    seen = f"{_limit(soft)} open files per process (at most {_limit(hard)})"
    if soft == resource.RLIM_INFINITY or soft >= FEW_FILES:
        return Check("machine", "open_files").ok(seen)
    return Check("machine", "open_files").judge(
        "warning" if soft < 1024 else "note",
        seen,
        "Data workers and connections between ranks fail with `Too many open files`.",
        f"ulimit -n {min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536}",
    )


def check_locked_memory() -> Finding:
    """RDMA network cards and pinned buffers lock memory."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    rdma = os.path.isdir("/sys/class/infiniband") and bool(os.listdir("/sys/class/infiniband"))
    seen = f"{_limit(soft, MIB, ' MiB')} of locked memory" + (", RDMA card present" * rdma)
    if not rdma or soft == resource.RLIM_INFINITY:
        return Check("machine", "locked_memory").ok(seen)
    return Check("machine", "locked_memory").warning(
        seen,
        "NCCL registers its buffers with the RDMA card, which needs locked memory.",
        "ulimit -l unlimited (docker run --ulimit memlock=-1)",
    )


def _limit(value: int, unit: int = 1, name: str = "") -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else f"{value // unit}{name}"


def check_compiler() -> Finding:
    """torch.compile builds C++ that includes Python.h: build and run a little of it."""
    names = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    why = "torch.compile builds its CPU kernels, and Triton its launchers, with it."
    change = "install g++ and python3-dev, or --compile.enabled false"
    if found is None:
        return Check("machine", "compiler").note("no C++ compiler on the PATH", why, change)
    include = sysconfig.get_paths()["include"]
    try:
        done = subprocess.run(
            [found, "-x", "c++", "-fsyntax-only", f"-I{include}", "-"],
            input=PROGRAM,
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("machine", "compiler").warning(f"{found} does not run: {error}", why, change)
    if done.returncode == 0:
        return Check("machine", "compiler").ok(f"{found} compiles, Python.h is there")
    reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr)
    return Check("machine", "compiler").note(f"{found} fails: {reason.strip()[:160]}", why, change)
