"""What passes of autograd give to whoever keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from configs.schema_execution import CompileConfig
from configs.schema_training import PrecisionConfig
from data.samples import Batch
from tests.support.rig import make
from tests.support.runs import series, train_here
from trainer.backward.autograd import AutogradPasses, LossModule
from trainer.backward.compiling import compile_passes
from trainer.objective.tasks import classification
from trainer.ranks.precision import build_precision

CPU = torch.device("cpu")


def built(kind: type[LossModule]) -> LossModule:
    rig = make()
    precision = build_precision(PrecisionConfig(), CPU)
    return kind(rig.module, normalize=rig.normalize, precision=precision, task=classification())


class Overwriting(LossModule):
    """Every pass spoils what the one before gave: its outputs, and gradients that autograd took
    over as they came."""

    def __init__(self, module: nn.Module, **parts: Any) -> None:
        super().__init__(module, **parts)
        self.overwritten = True
        self.given: list[Tensor] = []
        for parameter in module.parameters():
            parameter.register_post_accumulate_grad_hook(self._note)

    def _note(self, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        self.given.append(parameter.grad)

    def forward(self, *args: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        for tensor in self.given:
            tensor.data.fill_(-1)
        loss, score, weight = super().forward(*args)
        self.given = [loss, score]
        return loss, score, weight


def test_what_the_next_pass_writes_over_is_kept() -> None:
    """Losses wait on the device for a record, gradients for further micro-batches."""
    batches = [Batch(*make().batch(index), 16) for index in (0, 1)]
    found = []
    for kind in (Overwriting, LossModule):
        model = built(kind)
        passes = AutogradPasses(model, model.module, torch.amp.GradScaler("cpu", enabled=False))
        passes.clear()
        sums = [passes(batch, 0.1) for batch in batches]
        gradient = torch.empty(passes.size)
        passes.pop_gradient(gradient)
        found.append([*(part for some in sums for part in some if part is not None), gradient])
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("mode", "overwritten"),
    [
        ("default", False),
        ("reduce-overhead", True),
        ("max-autotune", True),
        ("max-autotune-no-cudagraphs", False),
    ],
)
def test_modes_that_record_graphs_are_known(mode: Any, overwritten: bool) -> None:
    model = built(LossModule)
    compile_passes(model, CompileConfig(mode=mode), make().plan, regional=False)
    assert model.overwritten is overwritten


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_modes_that_record_graphs_learn_what_the_default_does(
    gpu: torch.device, tmp_path: Path, idx_folder: Path, mode: str
) -> None:
    """Several micro-batches a step, and several steps a record."""
    runs = []
    for name in (mode, "default"):
        run = train_here(
            tmp_path / name,
            idx_folder,
            f"--parallel.device={gpu.type}",
            "--compile.enabled=true",
            f"--compile.mode={name}",
            "--compile.capture=false",
            "--model.kwargs.dropout=0",
            "--train.micro_batch_size=8",
            "--logging.every_steps=5",
        )
        runs.append(series(run, "train/loss"))
    assert runs[0] == pytest.approx(runs[1], rel=1e-3)
