"""JAX with one jitted function per step, called from a python loop over gathered batches."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.common import BATCH, Report, load_mnist, parse
from benchmarks.peers.jax_common import Tree, prepare, start, test_accuracy, train_step


@partial(jax.jit, donate_argnums=(0, 1))
def step(state: Tree, totals: Tree, inputs: jax.Array, labels: jax.Array) -> tuple[Tree, Tree]:
    """One step of Adam; the totals (summed loss, correct) stay on the device."""
    state, (loss, correct) = train_step(state, inputs, labels)
    return state, (totals[0] + loss, totals[1] + correct)


def main() -> None:
    arguments = parse(__doc__)
    prepare(arguments)
    train, test = load_mnist(arguments.limit)
    inputs, labels = train.normalised(), train.labels.astype(np.int32)
    random = np.random.default_rng(arguments.seed)
    report = Report("jax-step", arguments)

    began = time.perf_counter()
    for size in {min(BATCH, len(labels)), len(labels) % BATCH or BATCH}:  # whole and last batch
        zeros = (jnp.float32(0), jnp.int32(0))
        step(start(arguments.seed), zeros, inputs[:size], labels[:size])
    report.compile_seconds = time.perf_counter() - began

    state = start(arguments.seed)
    for _ in report.epochs():
        totals, seen = (jnp.float32(0), jnp.int32(0)), 0
        order = random.permutation(len(labels))
        for first in range(0, len(order), BATCH):
            indices = order[first : first + BATCH]
            state, totals = step(state, totals, inputs[indices], labels[indices])
            seen += len(indices)
            if report.stepped():
                break
        report.end_epoch(float(totals[0]) / seen, float(totals[1]) / seen, seen)
    report.finish(test_accuracy(state[0], test))


if __name__ == "__main__":
    main()
