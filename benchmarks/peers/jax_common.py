"""What the two JAX peers share: the network, its loss, Adam, and one step of training."""

from __future__ import annotations

import argparse
import itertools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.common import BATCH, DROPOUT, LEARNING_RATE, SIZES, Images

Tree = Any


def prepare(arguments: argparse.Namespace) -> None:
    """Before the first array: device, random bits of XLA's own generator, and CPU threads.

    XLA starts as many threads as there are CPUs it may run on. Left to itself, JAX multiplies in
    tf32 on a GPU.
    """
    products = {"highest": "highest", "high": "tensorfloat32"}[arguments.matmul]
    jax.config.update("jax_default_matmul_precision", products)
    jax.config.update("jax_platforms", arguments.device)
    jax.config.update("jax_default_prng_impl", "rbg")
    if arguments.device == "cpu":
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cpus[: arguments.threads_per_rank])


def start(seed: int) -> Tree:
    """Weights as torch draws them, Adam's two moments, step count, and a random key."""
    random = np.random.default_rng(seed)
    weights = []
    for inputs, outputs in itertools.pairwise(SIZES):
        bound = inputs**-0.5
        shapes = ((inputs, outputs), (outputs,))
        weights.append([jnp.float32(random.uniform(-bound, bound, shape)) for shape in shapes])
    zeros = jax.tree.map(jnp.zeros_like, weights)
    return weights, zeros, jax.tree.map(jnp.copy, zeros), jnp.int32(0), jax.random.key(seed)


def forward(weights: Tree, inputs: jax.Array, key: jax.Array | None) -> jax.Array:
    """(B, 784) -> (B, 10) logits; dropout with a key, none without."""
    for layer, (weight, bias) in enumerate(weights):
        inputs = inputs @ weight + bias
        if layer < len(weights) - 1:
            inputs = jax.nn.relu(inputs)
            if key is not None:
                kept = jax.random.bernoulli(
                    jax.random.fold_in(key, layer), 1 - DROPOUT, inputs.shape
                )
                inputs = jnp.where(kept, inputs / (1 - DROPOUT), 0)
    return inputs


def train_step(state: Tree, inputs: jax.Array, labels: jax.Array) -> tuple[Tree, Tree]:
    """One step of Adam; returns the new state and (summed loss, correct predictions)."""
    weights, means, squares, step, key = state
    key, dropout_key = jax.random.split(key)

    def mean_loss(weights: Tree) -> tuple[jax.Array, jax.Array]:
        logits = forward(weights, inputs, dropout_key)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        return -chosen.mean(), (logits.argmax(1) == labels).sum()

    (loss, correct), gradients = jax.value_and_grad(mean_loss, has_aux=True)(weights)
    step = step + 1
    means = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, means, gradients)
    squares = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, squares, gradients)
    first, second = 1 - 0.9**step, 1 - 0.999**step

    def moved(weight: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        return weight - LEARNING_RATE / first * m / (jnp.sqrt(v / second) + 1e-8)

    weights = jax.tree.map(moved, weights, means, squares)
    return (weights, means, squares, step, key), (loss * len(labels), correct)


def test_accuracy(weights: Tree, images: Images) -> float:
    logits = jax.jit(lambda inputs: forward(weights, inputs, None))(images.normalised())
    return float((logits.argmax(1) == images.labels).mean())


def batches(order: Any) -> tuple[Any, Any]:
    """An order cut into whole batches (S, 64) and what is left over."""
    whole = len(order) // BATCH * BATCH
    return order[:whole].reshape(-1, BATCH), order[whole:]
