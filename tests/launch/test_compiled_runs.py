"""Compiled runs: ranks that compile at different speeds, what is recorded, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from configs.errors import InputError
from tests.support.odd_runs import arguments, run
from tests.support.processes import ROOT, train
from tests.support.runs import records
from trainer.backward.compile_cache import forget_graphs

COMPILED = ("--compile.enabled=true", "--compile.backward=autograd")
SLOW, SHORT = 6.0, 3.0
"""Seconds that one rank compiles, and that ranks wait in training."""


@pytest.mark.process
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_rank_that_compiles_for_longer_than_ranks_wait_ends_nothing(
    strategy: str, tmp_path: Path
) -> None:
    """Law: not before the first step, and not at the short last batch, which the other rank is
    slow at. What was compiled is in the records after it and in the summary."""
    options = arguments(
        tmp_path,
        "slow_compiling:Net",
        *COMPILED,
        "--compile.regional=true",
        f"--parallel.strategy={strategy}",
        f"--parallel.timeout_seconds={SHORT}",
    )
    env = {"PYTHONPATH": str(ROOT / "tests/programs"), "COMPILE_SECONDS": str(SLOW)}
    finished = train(*options, ranks=2, env=env)
    assert "gradients compiled autograd (each block once)" in finished.stderr
    assert "compiled for " in finished.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "completed"
    told = [record for record in records(tmp_path / "run") if "compile/seconds" in record]
    assert [record["step"] for record in told] == [1, 3]  # the batch of 2 is the third
    assert told[0]["compile/seconds"] < SLOW < told[1]["compile/seconds"]
    assert told[1]["compile/graph_breaks"] == 0
    assert told[1]["compile/recompilations"] == 2  # the block and the loss, for the other size
    for key in ("compile/seconds", "compile/graph_breaks", "compile/recompilations"):
        assert summary[key] == told[1][key]


def test_a_model_that_breaks_its_graph_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    try:
        with pytest.raises(InputError, match=r"line \d+ of .*odd_networks.py, in forward: "):
            run(tmp_path, "Breaking", *COMPILED, "--compile.fullgraph=true")
    finally:
        torch.compiler.set_default_backend(None)
        forget_graphs()
    assert not (tmp_path / "run").exists()
