"""Who waits for whom: the loader's time for a global batch against the model's."""

from __future__ import annotations

import math
import statistics

from data.datasets import ArrayDataset
from launch.diagnosis.findings import Check, Finding
from launch.diagnosis.subject import Subject
from launch.diagnosis.trial import Trial
from trainer.ranks.cores import available_cores

WAITING = 0.5


def check_loading(subject: Subject, trial: Trial) -> Finding:
    """Compare the time to load a global batch with the time to train on it.

    Args:
        subject: The run, with what its loader took.
        trial: A trial that was not watched.
    """
    loading = subject.loading_seconds
    computing = statistics.median(trial.step_seconds[len(trial.step_seconds) // 4 :])
    workers = subject.config.data.workers
    # Workers load while the model computes; without them one waits for the other.
    waiting = (
        max(loading - computing, 0) / max(loading, computing)
        if workers
        else loading / (loading + computing)
    )
    size = subject.config.train.global_batch_size
    seen = (
        f"a global batch of {size} takes {loading * 1e3:.3g} ms to load and {computing * 1e3:.3g} "
        f"ms to train on: the model waits {waiting:.0%} of the time"
    )
    if waiting <= WAITING:
        return Check("data", "loading").ok(seen)
    if isinstance(subject.data.train, ArrayDataset) and not workers:
        return Check("data", "loading").note(f"{seen}; it is gathered whole already")
    enough = max(workers, 1) * math.ceil(loading / computing)
    cores = max(int(available_cores()), 1)
    return Check("data", "loading").warning(
        seen,
        "The device idles while samples are prepared.",
        f"--data.workers {min(enough, cores)}, or prepare samples once and return a "
        "data.datasets.ArrayDataset, which is gathered whole",
    )
