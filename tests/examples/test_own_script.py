"""A program that calls the trainer, as its user starts it: alone, under torchrun, in a notebook."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import (
    ROOT,
    begin,
    children,
    launch,
    python_command,
    start,
    torchrun_command,
    wait,
    wait_for_step,
)
from tests.support.runs import assert_same_bits, comparable

pytestmark = pytest.mark.process

SCRIPT = "examples/own_script.py"
HERE = {"PYTHONPATH": str(ROOT)}
QUICK = ["logging.every_steps=1", "checkpoint.every_steps=20", "parallel.device=cpu"]


def reached(output: str) -> list[str]:
    """What each rank said at its end."""
    return re.findall(r"completed at step 800: ([^>]*)>", output)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_example_is_killed_and_goes_on_bit_equal(tmp_path: Path, ranks: int) -> None:
    """The same command; on several ranks all have the same result."""

    def command(folder: str) -> list[str]:
        arguments = [f"output_dir={tmp_path / folder}", *QUICK]
        if ranks == 1:
            return python_command(SCRIPT, *arguments)
        return torchrun_command(ranks, SCRIPT, *arguments)

    killed = tmp_path / "killed/own_script"
    process = start(command("killed"), env=HERE)
    wait_for_step(killed, 47, process)
    for pid in children(process.pid) if ranks > 1 else []:
        os.kill(pid, signal.SIGKILL)
    process.kill()
    wait(process)
    assert json.loads((killed / "summary.json").read_text())["status"] == "running"
    finished = [wait(begin(command(folder), env=HERE)) for folder in ("killed", "whole", "whole")]
    assert [found.status for found in finished] == [0, 0, 0], finished[0].output
    assert "continuing from" in finished[0].stderr
    assert_same_bits(killed, tmp_path / "whole/own_script")
    assert comparable(killed) == comparable(tmp_path / "whole/own_script")
    assert "already finished at step 800" in finished[2].stdout
    metrics = [line for found in finished for line in reached(found.stdout)]
    assert len(metrics) == 3 * ranks
    assert len(set(metrics)) == 1
    assert float(re.findall(r"accuracy ([\d.]+)", metrics[0])[0]) > 0.95


UNSEEDED = """
import sys
import torch
from torch import nn
from torch.utils.data import TensorDataset
from trainer.fit import fit

inputs = torch.arange(60).float().reshape(20, 3) / 60
train_set = TensorDataset(inputs, torch.arange(20) % 2)
if "data" in sys.argv:
    train_set = TensorDataset(torch.randn(20, 3), torch.arange(20) % 2)
net = nn.Linear(3, 2)
for name in ("one", "two"):
    run = fit(model=net, data=(train_set, train_set), output_dir=sys.argv[1], batch_size=4,
              epochs=2, name=name, parallel={"device": "cpu"})
    print(f"WEIGHTS {run.model.weight.flatten().tolist()}\\n", end="", flush=True)
"""


def test_ranks_begin_with_one_network_and_are_refused_different_data(tmp_path: Path) -> None:
    """Nobody seeded anything: each rank draws another network, and other data if it may."""
    program = tmp_path / "mine.py"
    program.write_text(UNSEEDED)
    finished = launch(program, tmp_path / "runs", ranks=2, env=HERE)
    assert finished.status == 0, finished.output
    weights = re.findall(r"WEIGHTS .*", finished.stdout)
    assert len(weights) == 4, "a second call in the same processes trains, too"
    assert len(set(weights)) == 1
    refused = launch(program, tmp_path / "none", "data", ranks=2, env=HERE)
    assert refused.status != 0
    assert "InputError: data.dataset of rank 1: given 'given:TensorDataset@" in refused.output
    assert not (tmp_path / "none").exists()


NOTEBOOK = (
    """
import os, signal, threading, torch
from torch import nn
from trainer.fit import fit
from torch.utils.data import TensorDataset
torch.manual_seed(0)
inputs = torch.randn(400, 4)
labels = (inputs.sum(1) > 0).long()
part = TensorDataset(inputs, labels)
net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))
calls = [0]

def loss(outputs, targets):
    calls[0] += 1
    if calls[0] == 30:
        os.kill(os.getpid(), signal.SIGINT)  # as the button of a notebook does
    return nn.functional.cross_entropy(outputs, targets, reduction="none")

def train(name):
    return fit(model=net, data=(part, part), loss=loss, epochs=5, batch_size=16, name=name,
               output_dir=FOLDER, parallel={"device": "cpu"})

before = signal.getsignal(signal.SIGINT)
""",
    """
run = train("stopped")
assert run.status == "preempted" and 0 < run.step < 125, run
assert signal.getsignal(signal.SIGINT) is not None
run
""",
    """
run = train("stopped")
assert run.status == "completed" and run.step == 125, run
run
""",
    """
whole = train("whole")
for ours, theirs in zip(run.model.parameters(), whole.model.parameters(), strict=True):
    assert torch.equal(ours, theirs)
assert run.history[-1]["eval/loss"] == whole.history[-1]["eval/loss"]
""",
)


def test_a_notebook_is_interrupted_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("ipykernel", reason="a notebook takes `pip install nbclient ipykernel`")
    nbclient = pytest.importorskip("nbclient", reason="a notebook takes `pip install nbclient`")
    import nbformat

    cells = [f"import sys; sys.path.insert(0, {str(ROOT)!r}); FOLDER = {str(tmp_path)!r}"]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(text) for text in (*cells, *NOTEBOOK)]
    )
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = [cell.outputs for cell in notebook.cells]
    printed: list[Any] = [out.text for cell in outputs for out in cell if "text" in out]
    assert any("Stopped on request at step" in text for text in printed)
    assert any(
        re.search(r"^[\d:]+  epoch 5  step 125  test accuracy", text, re.M) for text in printed
    )
    assert not any("\x1b" in text or "\r" in text for text in printed)
    assert "completed at step 125" in outputs[3][-1].data["text/plain"]
