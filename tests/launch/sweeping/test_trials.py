"""What a sweep tries: a pure function of its file and its seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.errors import InputError
from launch.sweeping.trials import Sweep, of_seeds, read_sweep, rungs
from tests.support.processes import ROOT

SWEEPS = ROOT / "configs" / "sweeps"


def read(tmp_path: Path, content: Any, **options: Any) -> Sweep:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(content))
    return read_sweep(path, **({"count": 10, "seed": 0} | options))


def test_a_grid_is_every_combination_once_in_the_order_of_the_file() -> None:
    sweep = read_sweep(SWEEPS / "grid.yaml", count=1, seed=0)
    assert len(sweep.trials) == 18
    assert len({str(trial.overrides) for trial in sweep.trials}) == 18
    first = sweep.trials[0].overrides
    assert (first["optimizer.name"], first["optimizer.lr"], first["seed"]) == ("sgd", 3e-4, 0)
    assert (sweep.metric, sweep.higher, sweep.config) == ("val/accuracy", True, "mnist")
    assert [trial.name for trial in sweep.trials[:2]] == ["trial_1", "trial_2"]


def test_a_random_search_is_the_same_whenever_it_is_made() -> None:
    """Law: a function of the seed; more trials leave the first ones as they were."""
    few, many = (read_sweep(SWEEPS / "random.yaml", count=n, seed=3) for n in (5, 40))
    assert few.trials == many.trials[:5]
    assert read_sweep(SWEEPS / "random.yaml", count=5, seed=4).trials != few.trials
    rates = [trial.overrides["optimizer.lr"] for trial in many.trials]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert 10 < sum(rate < 1e-3 for rate in rates) < 30, "as many in each decade"


def test_every_kind_of_space_is_drawn_from_within_its_bounds(tmp_path: Path) -> None:
    spaces = {
        "a": {"value": 7},
        "b": {"values": ["x", "y"]},
        "c": {"min": 2, "max": 4},
        "d": {"min": 0.5, "max": 1.5},
        "e": {"distribution": "q_uniform", "q": 0.25, "min": 0.0, "max": 1.0},
    }
    trials = read(tmp_path, {"method": "random", "parameters": spaces}, count=60).trials
    drawn = {key: {trial.overrides[key] for trial in trials} for key in spaces}
    assert drawn["a"] == {7}
    assert drawn["b"] == {"x", "y"}
    assert drawn["c"] == {2, 3, 4}
    assert all(0.5 <= value <= 1.5 for value in drawn["d"])
    assert drawn["e"] <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert len(drawn["d"]) > 50


def test_seeds_are_ranges_or_lists() -> None:
    assert [t.overrides["seed"] for t in of_seeds("0..2,7").trials] == [0, 1, 2, 7]
    for wrong in ("", "a", "3..1", "1,1", "-1"):
        with pytest.raises(InputError, match="--seeds"):
            of_seeds(wrong)


GRID = {"method": "grid", "parameters": {"seed": {"values": [0]}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "bayes"}, "method: given 'bayes', expected grid or random"),
        ({"parameters": {}}, "parameters: given {}"),
        ({"parameters": {"a": 3}}, "parameters.a: given 3, expected value, values, or min and max"),
        ({"parameters": {"a": {"values": []}}}, "parameters.a.values: given"),
        ({"parameters": {"a": {"min": 0, "max": 1}}}, "Use method: random"),
        (
            {"method": "random", "parameters": {"a": {"min": 2, "max": 1}}},
            "two numbers, min below max",
        ),
        (
            {
                "method": "random",
                "parameters": {"a": {"distribution": "log_uniform_value", "min": 1, "max": 2}},
            },
            "Did you mean 'log_uniform_values'",
        ),
        (
            {"method": "random", "parameters": {"a": {"values": [1], "probabilities": [1.0]}}},
            "parameters.a: given 'probabilities', expected distribution",
        ),
        (
            {
                "method": "random",
                "parameters": {"a": {"distribution": "int_uniform", "min": 0.5, "max": 2}},
            },
            "expected whole numbers",
        ),
        ({"metric": {"name": "x", "goal": "best"}}, "metric.goal: given 'best'"),
    ],
)
def test_a_bad_file_is_refused_with_its_key(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        read(tmp_path, GRID | change)
    assert message in str(refused.value)


def test_a_refusal_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("# rates\nmethod: grid\nparameters:\n  seed: {value: 0}\n\n  a: 3\n")
    with pytest.raises(InputError, match=r"sweep.yaml, line 6: parameters.a: given 3"):
        read_sweep(path, count=1, seed=0)
    path.write_text("parameters: {a: {value: 1}}\nmethod: gird\n")
    with pytest.raises(InputError, match=r"line 2: method: given 'gird'"):
        read_sweep(path, count=1, seed=0)


def test_a_goal_that_is_left_out_follows_from_the_name(tmp_path: Path) -> None:
    assert read(tmp_path, GRID | {"metric": {"name": "val/accuracy"}}).higher is None
    assert read(tmp_path, GRID | {"metric": {"name": "x", "goal": "minimize"}}).higher is False


def test_trials_of_one_config_are_together(tmp_path: Path) -> None:
    configs = read_sweep(SWEEPS / "grid.yaml", count=1, seed=0).configs
    assert [len(trials) for trials in configs] == [3] * 6
    assert all(len({trial.overrides["optimizer.lr"] for trial in one}) == 1 for one in configs)
    assert len(of_seeds("0..4").configs) == 1
    twice = read(tmp_path, {"method": "grid", "parameters": {"a": {"values": [1, 1]}}})
    assert len(twice.configs) == 2


def test_rungs_lie_below_the_last_epoch() -> None:
    assert rungs(1, 3, 10) == [1, 3, 9]
    assert rungs(2, 2, 8) == [2, 4]
    assert rungs(5, 3, 5) == []
