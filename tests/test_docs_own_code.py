"""What docs/your_own.md shows is run, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from tests.support.processes import ROOT
from trainer.fit import fit

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = (ROOT / "docs/your_own.md").read_text(encoding="utf-8")


def test_the_first_program_trains_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert PAGE.index(program) < 200, "the page begins with it"
    monkeypatch.chdir(tmp_path)
    found: list[Any] = []
    for _ in range(2):
        names = {"__name__": "__main__"}
        exec(compile(program, "mine.py", "exec"), names)
        found.append(names["run"])
    assert found[0].metrics["accuracy"] > 0.95
    assert found[0].metrics == found[1].metrics
    assert "completed" in capsys.readouterr().out


def block(head: str) -> str:
    """An indented block of the page, from its first line to the next text."""
    (found,) = re.findall(rf"^(    {re.escape(head)}.*\n(?:(?:    .*)?\n)+)", PAGE, re.MULTILINE)
    return re.sub("^    ", "", str(found), flags=re.MULTILINE)


def test_its_metric_and_its_hook_work(tmp_path: Path) -> None:
    names: dict[str, Any] = {"torch": torch}
    for head in ("class WithinNoise:", "def look(moment):"):
        exec(compile(block(head), "your_own.md", "exec"), names)
    images = torch.rand(24, 1, 28, 28)
    part = TensorDataset(images, images.mean((1, 2, 3)))
    run = fit(
        model=nn.Sequential(nn.Flatten(), nn.Linear(784, 1)),
        data=(part, part),
        task="regression",
        metrics=[names["WithinNoise"]],
        epochs=1,
        batch_size=8,
        output_dir=str(tmp_path),
        name="shown",
        **{"logging.hook": names["look"], "parallel.device": "cpu"},
    )
    assert 0 <= run.metrics["within_noise"] <= 1
    notes = {file.parent.name for file in (run.directory / "notes").glob("*/step_*")}
    assert notes == {"guesses", "first", "weights.1.weight", "weights.1.bias"}
