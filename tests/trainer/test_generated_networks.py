"""Generated networks against the plain loop: the same bits on one rank, within rounding on more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launch.train import main as train
from tests.support.generated_cases import Case, cases
from tests.support.generated_networks import FEATURES
from tests.support.processes import ROOT, begin, torchrun_command, wait

ONE = cases(24, ranks=1, engines=("native", "exact", "native", "accelerate"))
SEVERAL = {
    2: cases(24, ranks=2, engines=("native", "exact", "fsdp", "accelerate")),
    3: cases(18, ranks=3, engines=("native", "fsdp", "accelerate")),
}
CLOSE = {"fp32": (1e-4, 2e-5), "bf16": (5e-2, 2e-2), "fp16": (1e-2, 5e-3)}
"""By precision: relative and absolute rounding after nine steps."""


def assert_as_expected(case: Case, folder: Path, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Every weight, buffer and average is the plain loop's.

    A mean over weights is within rounding: a step divides by its samples, and then by the weights.
    """
    if case.weighted or not case.same_kernel:
        rtol, atol = max(rtol, CLOSE[case.dtype][0]), max(atol, CLOSE[case.dtype][1])
    found, expected = case.found(folder), case.expected()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{case.name} {n}: {m}"
        )


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", ONE, ids=lambda case: case.name)
def test_one_rank_learns_the_bits_of_the_plain_loop(case: Case, tmp_path: Path) -> None:
    assert train(case.arguments(tmp_path)) == 0
    assert_as_expected(case, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_network_learns_the_bits_of_the_plain_loop(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    engine = data.draw(st.sampled_from(["native", "exact", "accelerate"]))
    features = data.draw(st.lists(st.sampled_from(sorted(FEATURES)), max_size=5))
    whole = engine == "exact" or "normed" in features
    case = Case(
        seed=data.draw(st.integers(0, 10**6)),
        features=tuple(features),
        engine=engine,
        dtype=data.draw(st.sampled_from(["fp32", "bf16", "fp16"])),
        optimizer=data.draw(st.sampled_from(["sgd", "adamw"])),
        clip=data.draw(st.sampled_from([None, 0.5])),
        decay=data.draw(st.sampled_from([None, 0.9])),
        weighted=data.draw(st.booleans()),
        micro=None if whole else data.draw(st.sampled_from([None, 16])),
    )
    folder = tmp_path_factory.mktemp("any")
    assert train(case.arguments(folder)) == 0
    assert_as_expected(case, folder)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_ranks_learn_what_the_plain_loop_does(ranks: int, tmp_path: Path) -> None:
    """Law: within rounding; under exact reduction its bits. All runs on the same ranks."""
    several = SEVERAL[ranks]
    commands = json.dumps([case.arguments(tmp_path) for case in several])
    command = torchrun_command(ranks, "tests/programs/several.py", commands)
    finished = wait(begin(command, env={"PYTHONPATH": str(ROOT)}), timeout=900)
    assert finished.status == 0, finished.output[-4000:]
    for case in several:
        rounding = (0.0, 0.0) if case.engine == "exact" else CLOSE[case.dtype]
        assert_as_expected(case, tmp_path, *rounding)
