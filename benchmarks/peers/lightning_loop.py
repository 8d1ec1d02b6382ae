"""Lightning: a LightningModule that logs its loss and accuracy, and a Trainer.

Logger, checkpoints and progress bar are off, so that it is not charged for writing files. With
`--ranks 2` the Trainer starts the second process and trains under its DDP strategy.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.peers.common import BATCH, LEARNING_RATE, Report, load_mnist, parse
from benchmarks.peers.torch_common import dataset, network, prepare, test_accuracy


class Classifier(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = network()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        inputs, labels = batch
        logits = self.model(inputs)
        loss = F.cross_entropy(logits, labels)
        accuracy = (logits.argmax(1) == labels).float().mean()
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        self.log("train/accuracy", accuracy, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)


class Clock(L.Callback):
    """Times the epochs of the Trainer's loop."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def on_train_epoch_start(self, *_: Any) -> None:
        self.report.begin_epoch()

    def on_train_batch_end(self, *_: Any) -> None:
        self.report.stepped()

    def on_train_epoch_end(self, trainer: L.Trainer, _: Any) -> None:
        metrics = trainer.callback_metrics
        loss, accuracy = metrics["train/loss"].item(), metrics["train/accuracy"].item()
        samples = len(trainer.train_dataloader.dataset)
        self.report.end_epoch(loss, accuracy, min(self.report.steps * BATCH, samples))


def main() -> None:
    arguments = parse((__doc__ or "").split("\n")[0])
    device = prepare(arguments)
    train, test = load_mnist(arguments.limit)
    loader = DataLoader(dataset(train), batch_size=BATCH // arguments.ranks, shuffle=True)
    name = "lightning" if arguments.ranks == 1 else "lightning-ddp"
    report = Report(name, arguments)
    classifier = Classifier()
    trainer = L.Trainer(
        max_epochs=arguments.epochs,
        max_steps=arguments.max_steps or -1,
        accelerator=arguments.device,
        devices=arguments.ranks,
        strategy="auto" if arguments.ranks == 1 else "ddp",
        callbacks=[Clock(report)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(classifier, loader)
    if trainer.is_global_zero:
        report.finish(test_accuracy(classifier.model.to(device), test, device))


if __name__ == "__main__":
    main()
