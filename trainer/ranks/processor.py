"""What computes here, by name."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_model() -> str:
    """As in `Intel(R) Xeon(R) Processor`; on other systems than Linux what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
