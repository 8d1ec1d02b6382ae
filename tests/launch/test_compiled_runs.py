"""Compiled runs: ranks that compile at different speeds, what is recorded, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from configs.errors import InputError
from tests.support.odd_runs import arguments, run
from tests.support.processes import ROOT, train
from tests.support.runs import assert_same_bits, records
from trainer.backward.compile_cache import forget_graphs
from trainer.backward.persistent_cache import VARIABLE

COMPILED = ("--compile.enabled=true", "--compile.backward=autograd")
SLOW, SHORT = 6.0, 3.0
"""Seconds that one rank compiles, and that ranks wait in training."""


@pytest.fixture
def graphs_as_they_are(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No kernels are made of graphs in this process; where they would be kept is forgotten."""
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)
    torch.compiler.set_default_backend("eager")
    forget_graphs()
    yield
    torch.compiler.set_default_backend(None)
    forget_graphs()


@pytest.mark.slow
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
    assert "ranks wait for each other" not in finished.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "completed"
    told = [record for record in records(tmp_path / "run") if "compile/seconds" in record]
    assert [record["step"] for record in told] == [1, 3]  # the batch of 2 is the third
    assert told[0]["compile/seconds"] < SLOW < told[1]["compile/seconds"]
    assert told[1]["compile/graph_breaks"] == 0
    assert told[1]["compile/recompilations"] == 2  # the block and the loss, for the other size
    for key in ("compile/seconds", "compile/graph_breaks", "compile/recompilations"):
        assert summary[key] == told[1][key]


def test_accelerate_runs_what_is_compiled(tmp_path: Path, graphs_as_they_are: None) -> None:
    """Law: with the bits of the native engine, in bf16 as well, whole and block by block."""
    pytest.importorskip("accelerate")
    half = ("--precision.dtype=bf16", "--train.epochs=1")
    for model, regional in (("Base", "false"), ("stacked", "true")):
        options = (*COMPILED, *half, f"--compile.regional={regional}")
        native = run(tmp_path / f"native-{model}", model, *options)
        other = run(tmp_path / model, model, *options, "--parallel.engine=accelerate")
        assert_same_bits(native, other)


def test_a_model_that_breaks_its_graph_is_refused_before_anything_is_written(
    tmp_path: Path, graphs_as_they_are: None
) -> None:
    with pytest.raises(InputError, match=r"line \d+ of .*odd_networks.py, in forward: "):
        run(tmp_path, "Breaking", *COMPILED, "--compile.fullgraph=true")
    assert not (tmp_path / "run").exists()
