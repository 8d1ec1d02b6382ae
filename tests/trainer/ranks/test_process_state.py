"""What a run in a program of the user's sets, and how the program finds it afterwards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from trainer.ranks.process_state import process_state_kept

DRAWING = """
import torch

from trainer.ranks.process_state import process_state_kept

torch.manual_seed(3)
if {runs}:
    with process_state_kept():
        torch.cuda.manual_seed_all(9)
        torch.rand(5, device="cuda")
print(torch.rand(5, device="cuda").tolist())
"""


@pytest.fixture
def matmul() -> Iterator[None]:
    yield
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("matmul")
@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_how_matrices_are_multiplied_may_have_been_said_in_torchs_new_way(precision: str) -> None:
    """Asked in the old way it raises then; a run sets it in the old one."""
    place = torch.backends.cuda.matmul
    place.fp32_precision = precision
    for set_to in ("highest", "high"):
        with process_state_kept():
            torch.set_float32_matmul_precision(set_to)
        assert place.fp32_precision == precision


@pytest.mark.gpu
@pytest.mark.process
def test_a_program_that_had_not_used_the_gpu_draws_there_what_it_would_have(
    gpu: torch.device,
) -> None:
    found = [
        subprocess.run(
            [sys.executable, "-c", DRAWING.format(runs=runs)],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path.cwd(),
        ).stdout
        for runs in (True, False)
    ]
    assert found[0] == found[1] != ""
