"""What is hard to cut into parts is trained, saved and continued among ranks as it is on one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.data_sets import make_idx
from tests.support.processes import launch, marked
from tests.support.runs import latest_weights, train_here

pytestmark = pytest.mark.process

OPTIONS = (
    "--model.name=tests.support.odd_parts:OddParts",
    "--model.kwargs={}",
    "--optimizer.name=tests.support.odd_parts:ByLines",
    "--optimizer.lr=0.01",
    "--train.global_batch_size=24",
    "--train.ema_decay=0.5",
    "--logging.progress=off",
    "--parallel.device=cpu",
)
FSDP = ("--parallel.strategy=fsdp", "--parallel.activation_checkpointing=true")


@pytest.mark.slow
def test_a_journey_of_odd_parts_is_the_run_of_one_rank(tmp_path: Path) -> None:
    """Two ranks in parts, three of which some hold no row, two whole, one: the bits are those that
    were saved, and the weights and the files those of one rank."""
    make_idx(tmp_path / "files", num_train=120)

    def several(ranks: int, *runs: tuple[str, ...]) -> list[Any]:
        own = (f"--data.root={tmp_path / 'files'}", f"--output_dir={tmp_path}", "--name=journey")
        arguments = [["--config=idx", *own, *OPTIONS, *FSDP, *more] for more in runs]
        env = {"PYTHONPATH": str(Path.cwd())}
        finished = launch("tests/programs/several.py", json.dumps(arguments), ranks=ranks, env=env)
        (found,) = marked(finished, "DIFFERENCES ")
        return list(found)

    parts = "--checkpoint.sharded=true"
    assert several(2, (parts, "--train.max_steps=2")) == [[]]
    saved = latest_weights(tmp_path / "journey")
    assert saved["layers.0.gate"].shape == ()
    assert several(3, (parts, "--train.max_steps=3")) == [[]]
    assert several(2, ("--train.max_steps=4",)) == [[]]
    one = (*OPTIONS, "--train.max_steps=5")
    train_here(tmp_path, tmp_path / "files", *one, "--name=journey", parts)
    train_here(tmp_path, tmp_path / "files", *one)
    weights, alone = latest_weights(tmp_path / "journey"), latest_weights(tmp_path / "run")
    assert weights.keys() == alone.keys()
    assert len(weights["history"]) == 5
    for name, value in alone.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-5)
    assert load_file(tmp_path / "run/checkpoints/latest/model.safetensors").keys() == alone.keys()
