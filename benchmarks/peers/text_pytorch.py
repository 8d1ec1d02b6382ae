"""A plain PyTorch loop over the windows of a text: a DataLoader, `.item()` every step."""

from __future__ import annotations

import sys
from pathlib import Path

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch.utils.data import DataLoader

from benchmarks.peers.common import Report, parse
from benchmarks.peers.text_common import (
    BATCH,
    CLIP,
    CONTEXT,
    adamw,
    cosine,
    decoder,
    load_text,
    test_loss,
    token_loss,
)
from benchmarks.peers.torch_common import prepare


def main() -> None:
    arguments = parse(__doc__)
    device = prepare(arguments)
    train, test, vocabulary = load_text(arguments.limit)
    loader = DataLoader(train, batch_size=BATCH, shuffle=True)
    model = decoder(vocabulary).to(device)
    optimizer = adamw(model)
    schedule = cosine(optimizer, arguments.max_steps or arguments.epochs * len(loader))
    report = Report("text-pytorch", arguments)
    for _ in report.epochs():
        model.train()
        losses, seen = [], 0
        for inputs, targets in loader:
            inputs, targets = inputs.to(device), targets.to(device)
            loss = token_loss(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()

            losses.append(loss.item())
            seen += len(inputs)
            if report.stepped():
                break
        report.end_epoch(sum(losses) / len(losses), 0.0, seen)
    loss, accuracy = test_loss(model, test, device)
    report.finish(accuracy, test_loss=loss, tokens_per_sample=CONTEXT)


if __name__ == "__main__":
    main()
