"""Hugging Face Accelerate over the windows of a text: `prepare`, `backward`, `clip_grad_norm_`."""

from __future__ import annotations

import sys
from pathlib import Path

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from accelerate import Accelerator
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
    prepare(arguments)
    accelerator = Accelerator(cpu=arguments.device == "cpu")
    train, test, vocabulary = load_text(arguments.limit)
    loader = DataLoader(train, batch_size=BATCH, shuffle=True)
    model = decoder(vocabulary)
    optimizer = adamw(model)
    schedule = cosine(optimizer, arguments.max_steps or arguments.epochs * len(loader))
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    report = Report("text-accelerate", arguments)
    for _ in report.epochs():
        model.train()
        loss_sum, seen = torch.zeros((), device=accelerator.device), 0
        steps = report.steps
        for inputs, targets in loader:
            loss = token_loss(model(inputs), targets)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

            loss_sum += loss.detach()
            seen += len(inputs)
            if report.stepped():
                break
        report.end_epoch(loss_sum.item() / (report.steps - steps), 0.0, seen)
    loss, accuracy = test_loss(accelerator.unwrap_model(model), test, accelerator.device)
    report.finish(accuracy, test_loss=loss, tokens_per_sample=CONTEXT)


if __name__ == "__main__":
    main()
