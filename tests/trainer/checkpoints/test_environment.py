"""What environment.json says about how a run was executed."""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch

from trainer.checkpoints.environment import describe_environment
from trainer.ranks.runtime import Runtime

ALONE = Runtime(launcher="python")


def test_the_environment_says_how_the_run_was_executed() -> None:
    runtime = Runtime(launcher="torchrun", world_size=2, local_world_size=2, backend="gloo")
    found = describe_environment(runtime)
    assert found["packages"]["torch"] == torch.__version__, "with its build"
    assert found["packages"]["numpy"]
    expected = {
        "launcher": "torchrun",
        "world_size": 2,
        "backend": "gloo",
        "device": "cpu",
        "cpu_count": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": ".".join(map(str, sys.version_info[:3])),
    }
    assert {key: found[key] for key in expected} == expected
    for key in ("git_commit", "git_dirty", "command", "started_at", "host", "platform", "cpu"):
        assert key in found
    assert found["memory_bytes"] > 2**20
    assert len(found["gpus"]) == torch.cuda.device_count()
    assert json.loads(json.dumps(found)) == found, "plain values only"


def test_the_environment_says_which_way_the_run_takes_its_steps_if_it_is_told() -> None:
    told = describe_environment(ALONE, {"cuda_graphs": False, "max_steps": 8})
    assert told["execution"] == {"cuda_graphs": False, "max_steps": 8}
    assert told.keys() - describe_environment(ALONE).keys() == {"execution"}


@pytest.mark.gpu
def test_the_environment_names_the_gpus(gpu: torch.device) -> None:
    found = describe_environment(Runtime(launcher="python", device=gpu))
    assert found["device"] == "cuda"
    assert found["gpus"][0] == torch.cuda.get_device_name(gpu)
