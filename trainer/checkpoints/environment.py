"""What a run or a measurement was executed on: code, package versions, hardware, launcher."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from trainer.ranks.host_memory import memory_bytes
from trainer.ranks.processor import cpu_model
from trainer.ranks.runtime import Runtime

PACKAGES = ("torch", "numpy", "safetensors", "jsonargparse", "rich", "wandb", "accelerate")


def describe_machine() -> dict[str, Any]:
    """Code, package versions and hardware, without which a figure measured here says little.

    Returns:
        Plain values for JSON. The git entries are None and False outside of a repository, a package
        that is not installed has the version None, and memory is in bytes.
    """
    root = Path(__file__).resolve().parents[2]
    gpus = torch.cuda.device_count()
    return {
        "git_commit": _git(root, "rev-parse", "HEAD"),
        "git_dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_count": os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(gpus)],
    }


def describe_environment(
    runtime: Runtime, execution: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The content of environment.json: the machine, the command, and how the ranks were started.

    Args:
        runtime: The rank that asks.
        execution: How the run takes its steps, as plain values; left out if None.

    Returns:
        What `describe_machine` says and more, as plain values for JSON.
    """
    environment = describe_machine() | {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started_at": time.time(),
        "host": socket.gethostname(),
        "launcher": runtime.launcher,
        "world_size": runtime.world_size,
        "backend": runtime.backend or None,
        "device": runtime.device.type,
        "threads": torch.get_num_threads(),
    }
    return environment if execution is None else environment | {"execution": dict(execution)}


def _git(root: Path, *arguments: str) -> str | None:
    if not (root / ".git").exists():  # installed, it may lie in somebody else's repository
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def version(package: str) -> str | None:
    """Of an installed package; None for one that is not."""
    if package == "torch":  # with its build, such as +cu130, which the metadata may lack
        return str(torch.__version__)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
