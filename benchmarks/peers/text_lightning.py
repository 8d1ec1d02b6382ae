"""Lightning over the windows of a text: a LightningModule that logs its loss, and a Trainer.

Logger, checkpoints and progress bar are off, so that it is not charged for writing files.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import lightning as L
from torch import Tensor
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


class Writer(L.LightningModule):
    def __init__(self, vocabulary: int, total_steps: int) -> None:
        super().__init__()
        self.model = decoder(vocabulary)
        self.total_steps = total_steps

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        inputs, targets = batch
        loss = token_loss(self.model(inputs), targets)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = adamw(self.model)
        schedule = {"scheduler": cosine(optimizer, self.total_steps), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class Clock(L.Callback):
    """Times the epochs of the Trainer's loop."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def on_train_epoch_start(self, *_: Any) -> None:
        self.report.begin_epoch()

    def on_train_batch_end(self, *_: Any) -> None:
        self.report.stepped()

    def on_train_epoch_end(self, trainer: L.Trainer, _: Any) -> None:
        samples = len(trainer.train_dataloader.dataset)
        loss = trainer.callback_metrics["train/loss"].item()
        self.report.end_epoch(loss, 0.0, min(self.report.steps * BATCH, samples))


def main() -> None:
    arguments = parse((__doc__ or "").split("\n")[0])
    device = prepare(arguments)
    train, test, vocabulary = load_text(arguments.limit)
    loader = DataLoader(train, batch_size=BATCH, shuffle=True)
    report = Report("text-lightning", arguments)
    writer = Writer(vocabulary, arguments.max_steps or arguments.epochs * len(loader))
    trainer = L.Trainer(
        max_epochs=arguments.epochs,
        max_steps=arguments.max_steps or -1,
        accelerator=arguments.device,
        devices=1,
        gradient_clip_val=CLIP,
        callbacks=[Clock(report)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(writer, loader)
    loss, accuracy = test_loss(writer.model.to(device), test, device)
    report.finish(accuracy, test_loss=loss, tokens_per_sample=CONTEXT)


if __name__ == "__main__":
    main()
