"""Pure python: the mini framework of mini_framework.py, a few steps of it.

An epoch would take many minutes, so it trains on a few steps and extrapolates. The line it prints
says so (`extrapolated`, `measured_samples`), and its accuracy is that of a network barely trained,
on a part of the test images.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.peers.common import (
    BATCH,
    DROPOUT,
    LEARNING_RATE,
    SIZES,
    Images,
    Report,
    load_mnist,
    parse,
)
from benchmarks.peers.mini_framework import Adam, Network, count_correct, cross_entropy

STEPS, TEST_IMAGES = 4, 200


def main() -> None:
    arguments = parse("A mini framework in pure python.", max_steps=STEPS)
    random.seed(arguments.seed)
    train, test = load_mnist(arguments.limit)
    num_samples = min(len(train.labels), arguments.max_steps * BATCH)
    order = random.sample(range(len(train.labels)), num_samples)
    network = Network(SIZES, DROPOUT)
    optimizer = Adam(network.linears, LEARNING_RATE)
    report = Report("pure-python", arguments)
    chosen = Images(train.pixels[order], train.labels[order])
    pixels, labels = chosen.normalised().tolist(), chosen.labels.tolist()
    loss_sum, correct, began = 0.0, 0, time.perf_counter()
    for first in range(0, num_samples, BATCH):
        inputs, targets = pixels[first : first + BATCH], labels[first : first + BATCH]
        logits = network.forward(inputs, training=True)
        loss, gradient = cross_entropy(logits, targets)
        network.backward(gradient)
        optimizer.step()
        loss_sum += loss * len(targets)
        correct += count_correct(logits, targets)
        report.stepped()
    seconds = time.perf_counter() - began
    report.end_epoch(loss_sum / num_samples, correct / num_samples, len(train.labels))
    some = Images(test.pixels[:TEST_IMAGES], test.labels[:TEST_IMAGES])
    logits = network.forward(some.normalised().tolist(), training=False)
    report.finish(
        count_correct(logits, some.labels.tolist()) / TEST_IMAGES,
        train_seconds=[seconds * len(train.labels) / num_samples],
        extrapolated=True,
        measured_samples=num_samples,
        measured_seconds=seconds,
        test_samples=TEST_IMAGES,
    )


if __name__ == "__main__":
    main()
