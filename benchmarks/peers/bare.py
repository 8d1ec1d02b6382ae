"""A hand-written bare torch loop: whole-batch gather, fused Adam, metrics kept on the device.

The images stay uint8 in memory and become floats batch by batch. `bare_passes.py` does the same
without autograd.
"""

from __future__ import annotations

import sys
from pathlib import Path

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
import torch.nn.functional as F

from benchmarks.peers.common import BATCH, LEARNING_RATE, Report, load_mnist, parse
from benchmarks.peers.torch_common import network, prepare, test_accuracy
from data.catalogue.catalog import MNIST


def main() -> None:
    arguments = parse("A hand-written bare torch loop.")
    device = prepare(arguments)
    train, test = load_mnist(arguments.limit)
    pixels = torch.from_numpy(train.pixels).to(device)
    targets = torch.from_numpy(train.labels).to(device)
    factor = torch.tensor(1 / (255 * MNIST.std[0]), device=device)
    offset = torch.tensor(-MNIST.mean[0] / MNIST.std[0], device=device)
    model = network().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    report = Report("bare", arguments)
    for _ in report.epochs():
        model.train()
        loss_sum = torch.zeros((), device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        seen = 0
        for indices in torch.randperm(len(targets), device=device).split(BATCH):
            inputs = torch.addcmul(offset, pixels.index_select(0, indices).float(), factor)
            labels = targets.index_select(0, indices)
            logits = model(inputs)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

            loss_sum += loss.detach() * len(labels)
            correct += (logits.detach().argmax(1) == labels).sum()
            seen += len(labels)
            if report.stepped():
                break
        report.end_epoch(loss_sum.item() / seen, correct.item() / seen, seen)
    report.finish(test_accuracy(model, test, device))


if __name__ == "__main__":
    main()
