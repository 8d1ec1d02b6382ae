"""How long a run has trained, and how many samples a second."""

from __future__ import annotations

import time


class Stopwatch:
    """Training time and throughput. Time from a `stop` to the next `start` is not counted."""

    def __init__(self) -> None:
        self.total_seconds = 0.0
        self._since_read = 0.0
        self._samples = 0
        self._started = time.perf_counter()

    def start(self) -> None:
        """Count time from now on."""
        self._started = time.perf_counter()

    def stop(self, samples: int) -> None:
        """Count the time since the last `start` or `stop`, in which `samples` were trained on."""
        seconds = time.perf_counter() - self._started
        self._started += seconds
        self.total_seconds += seconds
        self._since_read += seconds
        self._samples += samples

    def read(self) -> float:
        """Samples per second since it was read last."""
        rate = self._samples / max(self._since_read, 1e-9)
        self._since_read, self._samples = 0.0, 0
        return rate
