"""Can the GPUs of this machine be used: driver, torch build, architecture, free memory, results."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from pathlib import Path

import torch

from launch.diagnosis.findings import Check, Finding

BUSY_FRACTION = 0.1
"""Part of a GPU's memory that is taken for in use by somebody else."""
TOLERANCE = 1e-3


def check_gpu() -> list[Finding]:
    """One finding about the driver and torch's build, and one for every GPU torch can use."""
    version = torch.version.cuda
    if not torch.cuda.is_available():
        return [_no_gpu(version)]
    nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    seen = f"CUDA {version}, NCCL {nccl}, driver {_driver_version() or 'unknown'}"
    found = [Check("machine", "cuda").ok(seen)]
    return found + [_one_gpu(index) for index in range(torch.cuda.device_count())]


def _no_gpu(version: str | None) -> Finding:
    driver, complaint = _driver_version(), _nvidia_smi()
    if complaint is not None and "mismatch" in complaint:
        return Check("machine", "cuda").problem(
            f"nvidia-smi says: {complaint}",
            "The driver in the kernel and its libraries have different versions: no GPU works.",
            "reboot, or load the updated kernel module",
        )
    if driver is None:
        hidden = "no NVIDIA driver: training runs on the CPU"
        return Check("machine", "cuda").ok(hidden)
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Check("machine", "cuda").note("CUDA_VISIBLE_DEVICES hides every GPU")
    if version is None:
        return Check("machine", "cuda").warning(
            f"driver {driver}, but torch {torch.__version__} is built without CUDA",
            "Training runs on the CPU while a GPU idles.",
            "install torch from https://pytorch.org/get-started/ for this CUDA version",
        )
    return Check("machine", "cuda").problem(
        f"driver {driver}, torch built for CUDA {version}, no usable GPU ({_reason()})",
        "The driver is too old for this CUDA version, or its devices are not in this container.",
        "update the driver, install a torch built for an older CUDA, or docker run --gpus all",
    )


def _one_gpu(index: int) -> Finding:
    facts = torch.cuda.get_device_properties(index)
    check = f"gpu_{index}"
    architecture = f"sm_{facts.major}{facts.minor}"
    free, total = torch.cuda.mem_get_info(index)
    seen = f"{facts.name}, {architecture}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    supported = torch.cuda.get_arch_list()
    # A build for sm_80 runs on sm_86 too, but not on another major version.
    if supported and not any(name.startswith(f"sm_{facts.major}") for name in supported):
        return Check("machine", check).problem(
            f"{seen}; torch is built for {', '.join(supported)}",
            "There are no kernels for this GPU in this build of torch.",
            "install a torch build for it from https://pytorch.org/get-started/",
        )
    error = _matmul_error(torch.device("cuda", index))
    if not error < TOLERANCE:
        return Check("machine", check).problem(
            f"{seen}; a matrix product differs from the CPU's by {error:.2g} of its size",
            "A GPU that computes wrongly spoils every run on it.",
            f"leave GPU {index} out with CUDA_VISIBLE_DEVICES, and have it tested",
        )
    if free < (1 - BUSY_FRACTION) * total:
        return Check("machine", check).note(
            f"{seen}: in use by another process",
            "Runs that share a GPU slow each other down and may run out of memory.",
            "nvidia-smi lists its processes",
        )
    return Check("machine", check).ok(seen)


def _matmul_error(device: torch.device) -> float:
    """Largest difference of a matrix product to the CPU's, relative to its largest entry."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 256, 256, generator=generator, dtype=torch.float64)
    expected = left @ right
    actual = (left.to(device) @ right.to(device)).cpu()
    return float((actual - expected).abs().max() / expected.abs().max())


def _reason() -> str:
    """What torch says when it is made to look."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except (RuntimeError, AssertionError) as error:
            return (str(error).strip().splitlines() or ["no reason given"])[0]
    return "no device found"


def _driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """The NVIDIA kernel module's version, None without one."""
    try:
        words = path.read_text().split()
    except OSError:
        return None
    return next((word for word in words if word[0].isdigit() and "." in word), "of unknown version")


def _nvidia_smi() -> str | None:
    """What nvidia-smi complains about, None if it does not or is not there."""
    if shutil.which("nvidia-smi") is None:
        return None
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "no answer"
    return None if done.returncode == 0 else (done.stdout + done.stderr).strip()
