"""JAX with the whole epoch in one jitted `lax.scan`, and the images on the device."""

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
from benchmarks.peers.jax_common import (
    Tree,
    batches,
    prepare,
    start,
    test_accuracy,
    train_step,
)


@partial(jax.jit, donate_argnums=0)
def train_epoch(state: Tree, inputs: jax.Array, labels: jax.Array, order: jax.Array) -> Tree:
    """Whole batches in a scan, then the short last one; returns state, summed loss, correct."""
    whole, rest = batches(order)

    def step(state: Tree, indices: jax.Array) -> tuple[Tree, Tree]:
        return train_step(state, inputs[indices], labels[indices])

    state, (losses, correct) = jax.lax.scan(step, state, whole)
    loss_sum, correct_sum = losses.sum(), correct.sum()
    if len(rest):
        state, (loss, more) = step(state, rest)
        loss_sum, correct_sum = loss_sum + loss, correct_sum + more
    return state, loss_sum, correct_sum


def main() -> None:
    arguments = parse(__doc__)
    prepare(arguments)
    train, test = load_mnist(arguments.limit)
    inputs, labels = jnp.asarray(train.normalised()), jnp.asarray(train.labels, jnp.int32)
    num_samples = min(len(labels), (arguments.max_steps or 1 << 40) * BATCH)
    random = np.random.default_rng(arguments.seed)
    state = start(arguments.seed)
    report = Report("jax-scan", arguments)

    began = time.perf_counter()
    order = jnp.arange(num_samples, dtype=jnp.int32)
    compiled = train_epoch.lower(state, inputs, labels, order).compile()
    report.compile_seconds = time.perf_counter() - began

    for _ in report.epochs():
        order = random.permutation(len(labels))[:num_samples].astype(np.int32)
        report.stepped(-(-num_samples // BATCH))  # the first step begins now: no later to be seen
        state, loss_sum, correct = compiled(state, inputs, labels, jnp.asarray(order))
        report.end_epoch(float(loss_sum) / num_samples, float(correct) / num_samples, num_samples)
    report.finish(test_accuracy(state[0], test))


if __name__ == "__main__":
    main()
