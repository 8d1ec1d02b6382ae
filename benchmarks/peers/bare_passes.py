"""A bare torch loop with its passes written out: the operations of Convoy's step, nothing else.

No module, no autograd, no configuration, no logging, no checkpoint: the passes by hand and one
fused Adam over a flat buffer. What Convoy takes longer is the overhead of being a trainer.
"""

from __future__ import annotations

import sys
from pathlib import Path

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import nn

from benchmarks.peers.common import BATCH, LEARNING_RATE, Report, load_mnist, parse
from benchmarks.peers.passes_by_hand import Network
from benchmarks.peers.torch_common import network, prepare, test_accuracy

TOGETHER = 10
"""Batches that are gathered, normalised and given their random numbers at once."""


@torch.inference_mode()
def main() -> None:
    arguments = parse("A bare torch loop with its passes written out.")
    device = prepare(arguments)
    torch.set_flush_denormal(True)
    train, test = load_mnist(arguments.limit)
    pixels = torch.from_numpy(train.pixels).to(device)
    targets = torch.from_numpy(train.labels).to(device)
    module, net = network().to(device), Network(device)
    linears = [layer for layer in module if isinstance(layer, nn.Linear)]
    given = [tensor for layer in linears for tensor in (layer.weight.t(), layer.bias)]
    for parameter, value in zip(net.parameters, given, strict=True):
        parameter.copy_(value)
    mean, square = torch.zeros_like(net.values), torch.zeros_like(net.values)
    count = torch.zeros((), device=device)
    report = Report("bare-passes", arguments)

    def adam() -> None:
        count.add_(1)
        torch._fused_adam_(
            [net.values],
            [net.gradients],
            [mean],
            [square],
            [],
            [count],
            lr=LEARNING_RATE,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    for _ in report.epochs():
        losses, hits, seen = [], [], 0
        order = torch.randperm(len(targets), device=device)
        whole = len(order) // BATCH * BATCH
        for indices in (*order[:whole].split(TOGETHER * BATCH), order[whole:]):
            left = (arguments.max_steps or sys.maxsize) - report.steps
            indices = indices[: left * BATCH]
            if not len(indices):
                break
            labels = targets.index_select(0, indices)
            number = -(-len(indices) // BATCH)
            loss, correct = net.steps(pixels.index_select(0, indices), labels, number, adam)
            losses += loss
            hits.append(correct)
            seen += len(labels)
            if report.stepped(number):
                break
        loss_sum, correct_sum = torch.stack(losses).sum(), torch.cat(hits).sum()
        report.end_epoch(loss_sum.item() / seen, correct_sum.item() / seen, seen)
    for value, parameter in zip(given, net.parameters, strict=True):
        value.copy_(parameter)
    report.finish(test_accuracy(module, test, device))


if __name__ == "__main__":
    main()
