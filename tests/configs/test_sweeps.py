"""The sweep files: what `wandb sweep` accepts, and commands that launch/train.py accepts."""

from __future__ import annotations

import json
import os
import queue
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.keys import known_keys
from configs.load import RECIPES, load_config
from tests.support.processes import ROOT, environment

SWEEPS = sorted((RECIPES / "sweeps").glob("*.yaml"))
TOP_LEVEL = {
    *("apiVersion", "kind", "controller", "description", "program", "entity", "project"),
    *("method", "command", "name", "metric", "early_terminate", "parameters"),
}
"""Keys of W&B's schema (github.com/wandb/sweeps, config/schema.json); no others are accepted."""


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def samples(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """Values a sweep may hand out: the first and the last of every parameter."""

    def ends(parameter: dict[str, Any]) -> list[Any]:
        if "value" in parameter:
            return [parameter["value"]] * 2
        if "values" in parameter:
            return [parameter["values"][0], parameter["values"][-1]]
        return [parameter["min"], parameter["max"]]

    return [{key: ends(p)[end] for key, p in sweep["parameters"].items()} for end in (0, 1)]


def test_there_is_a_search_and_a_grid_and_both_start_runs_alike() -> None:
    assert {load(path)["method"] for path in SWEEPS} == {"random", "grid"}
    assert len({tuple(load(path)["command"]) for path in SWEEPS}) == 1


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_has_the_form_that_wandb_accepts(path: Path) -> None:
    from wandb.sdk.launch.sweeps.utils import load_sweep_config

    sweep = load(path)
    assert load_sweep_config(str(path)) == sweep
    assert sweep.keys() <= TOP_LEVEL
    assert sweep["metric"] == {"name": "val/accuracy", "goal": "maximize"}
    assert set(sweep["parameters"]) <= {*known_keys(), "model.kwargs.dropout"}
    for parameter in sweep["parameters"].values():
        assert set(parameter) in ({"value"}, {"values"}, {"distribution", "min", "max"})
        if sweep["method"] == "grid":
            assert "min" not in parameter
    sweeps = pytest.importorskip(
        "sweeps.config", reason="W&B's own schema is in the package `sweeps`"
    )
    assert sweeps.cfg.schema_violations_from_proposed_config(sweep) == []


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_flags_of_a_sweep_are_read_as_the_values_it_chose(path: Path) -> None:
    """By W&B's own expansion of `${args}`."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    for sample in [*samples(load(path)), {"optimizer.lr": 1e-05, "data.drop_last": True}]:
        command = {"args": {key: {"value": value} for key, value in sample.items()}}
        flags = create_sweep_command_args(command)["args"]
        config: Any = load_config(["--config=mnist", *flags], prog="train", description="")
        for key, value in sample.items():
            found = config
            for name in key.split("."):
                found = found[name] if isinstance(found, dict) else getattr(found, name)
            assert found == value, key


@pytest.mark.process
@pytest.mark.parametrize("path", SWEEPS[:1], ids=lambda path: path.stem)
def test_the_agent_starts_a_run_in_a_directory_of_its_own(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B's real agent, told by hand what to run; the run takes the id the agent chose."""
    from wandb.wandb_agent import Agent

    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)
    bin_ = Path(sys.executable).parent
    given = {
        "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}",
        "WANDB_DIR": str(tmp_path),
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_SWEEP_ID": "sweep1",
        "WANDB_RUN_ID": "",  # set by the agent
        "WANDB_SWEEP_PARAM_PATH": "",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    agent = Agent(None, queue.Queue(), "sweep1")
    agent._sweep_command = load(path)["command"]
    values = samples(load(path))[1] | {"output_dir": str(tmp_path), "train.max_steps": 2}
    arguments = {key: {"value": value} for key, value in values.items()}
    agent._command_run({"run_id": "run42", "program": "launch/train.py", "args": arguments})
    assert agent._run_processes["run42"].wait() == 0
    run = tmp_path / "sweep-run42"
    assert json.loads((run / "summary.json").read_text())["step"] == 2
    assert json.loads((run / "wandb.json").read_text()) == {"id": "run42"}
    (offline,) = run.glob("wandb/offline-run-*/run-*.wandb")
    assert offline.name == "run-run42.wandb"
