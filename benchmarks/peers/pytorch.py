"""The plain PyTorch tutorial loop: a DataLoader over a TensorDataset, `.item()` every step."""

from __future__ import annotations

import sys
from pathlib import Path

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.peers.common import BATCH, LEARNING_RATE, Report, load_mnist, parse
from benchmarks.peers.torch_common import dataset, network, prepare, test_accuracy


def main() -> None:
    arguments = parse(__doc__)
    device = prepare(arguments)
    train, test = load_mnist(arguments.limit)
    loader = DataLoader(dataset(train), batch_size=BATCH, shuffle=True)
    model = network().to(device)
    loss_function = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    report = Report("pytorch", arguments)
    for _ in report.epochs():
        model.train()
        loss_sum, correct, seen = 0.0, 0, 0
        for inputs, labels in loader:
            inputs, labels = inputs.to(device), labels.to(device)
            logits = model(inputs)
            loss = loss_function(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            loss_sum += loss.item() * len(labels)
            correct += (logits.argmax(1) == labels).sum().item()
            seen += len(labels)
            if report.stepped():
                break
        report.end_epoch(loss_sum / seen, correct / seen, seen)
    report.finish(test_accuracy(model, test, device))


if __name__ == "__main__":
    main()
