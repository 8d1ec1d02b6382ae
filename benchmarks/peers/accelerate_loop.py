"""Hugging Face Accelerate: the tutorial loop with `prepare` and `backward`, as its examples do."""

from __future__ import annotations

import sys
from pathlib import Path

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.peers.common import BATCH, LEARNING_RATE, Report, load_mnist, parse
from benchmarks.peers.torch_common import dataset, network, prepare, test_accuracy


def main() -> None:
    arguments = parse(__doc__)
    prepare(arguments)
    accelerator = Accelerator(cpu=arguments.device == "cpu")
    train, test = load_mnist(arguments.limit)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    loader = DataLoader(dataset(train), batch_size=BATCH, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    loss_function = nn.CrossEntropyLoss()
    report = Report("accelerate", arguments)
    for _ in report.epochs():
        model.train()
        loss_sum = torch.zeros((), device=accelerator.device)
        correct = torch.zeros((), dtype=torch.int64, device=accelerator.device)
        seen = 0
        for inputs, labels in loader:
            logits = model(inputs)
            loss = loss_function(logits, labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()

            loss_sum += loss.detach() * len(labels)
            correct += (logits.detach().argmax(1) == labels).sum()
            seen += len(labels)
            if report.stepped():
                break
        report.end_epoch(loss_sum.item() / seen, correct.item() / seen, seen)
    report.finish(test_accuracy(accelerator.unwrap_model(model), test, accelerator.device))


if __name__ == "__main__":
    main()
