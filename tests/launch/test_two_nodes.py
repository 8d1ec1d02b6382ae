"""Two nodes, as two network namespaces with a cable between them: it is cut at some moment."""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT, environment, launch, wait_for_step

NODES = """
unshare -n sleep 600 & other=$!
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.1; done
ip link set lo up
ip link add cable0 type veth peer name cable1
ip link set cable1 netns $other
ip addr add 10.9.0.1/24 dev cable0
ip link set cable0 up
far="nsenter -t $other -n"
$far ip link set lo up
$far ip addr add 10.9.0.2/24 dev cable1
$far ip link set cable1 up
GLOO_SOCKET_IFNAME=cable0 "$@" --node_rank=0 $TRAIN & first=$!
GLOO_SOCKET_IFNAME=cable1 $far "$@" --node_rank=1 $TRAIN & second=$!
read word
ip link set cable0 down
wait $first; echo "first ended with $?"
wait $second; echo "second ended with $?"
kill $other
"""
"""Arguments: torchrun. A line on the standard input cuts the cable."""
GIVEN_UP = 10.0


@functools.cache
def can_make_nodes() -> bool:
    if sys.platform != "linux" or not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return False
    made = ["unshare", "-rn", "ip", "link", "add", "cable0", "type", "veth", "peer", "cable1"]
    return subprocess.run(made, capture_output=True, check=False).returncode == 0


def start_nodes(script: str, *options: str, env: dict[str, str] | None = None) -> Any:
    """torchrun on both nodes, one rank each; a line on the standard input cuts the cable."""
    run = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    run += ["--master_addr=10.9.0.1", "--master_port=29511"]
    nodes = NODES.replace("$TRAIN", shlex.join([str(ROOT / script), *options]))
    return subprocess.Popen(
        ["unshare", "-rn", "bash", "-c", nodes, "nodes", *run],
        env=environment(env),
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture
def nodes() -> None:
    if not can_make_nodes():
        pytest.skip("network namespaces need Linux, iproute2 and the right to make them")


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.usefixtures("nodes")
def test_a_cable_that_is_cut_ends_both_nodes_and_costs_no_checkpoint(
    small: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Law: both have ended soon after `parallel.timeout_seconds`, and one machine goes on."""
    every = ["--checkpoint.every_steps=5", "--logging.every_steps=1", "--parallel.device=cpu"]
    options = small(
        "run", "--train.epochs=100000", f"--parallel.timeout_seconds={GIVEN_UP}", *every
    )
    process = start_nodes("launch/train.py", *options)
    wait_for_step(tmp_path / "run", 20, process)
    cut = time.monotonic()
    output, errors = process.communicate("cut\n", timeout=GIVEN_UP + 60)
    assert time.monotonic() - cut < GIVEN_UP + 30
    assert "first ended with 1" in output, errors
    assert "second ended with 1" in output, errors
    assert errors.count("another rank is gone or silent") == 2, errors
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "failed"
    reached = int((tmp_path / "run/checkpoints/latest").resolve().name.removeprefix("step_"))
    more = small("run", "--train.epochs=100000", f"--train.max_steps={reached + 5}", *every)
    finished = launch("launch/train.py", *more)
    assert finished.status == 0, finished.output
    assert f"(step {reached})" in finished.output


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize("moment", ["before it meets the others", "while it connects"])
def test_a_cable_that_is_cut_in_a_start_ends_both_nodes(
    small: Callable[..., list[str]], moment: str
) -> None:
    """Law: with a word of each, soon after `parallel.init_timeout_seconds` at the latest."""
    options = small("run", "--parallel.device=cpu", f"--parallel.init_timeout_seconds={GIVEN_UP}")
    env = {"PYTHONPATH": str(ROOT), "PAUSES": moment}
    process = start_nodes("tests/programs/dying.py", *options, env=env)
    while "pausing" not in process.stdout.readline():
        assert process.poll() is None, process.communicate()
    cut = time.monotonic()
    output, errors = process.communicate("cut\n", timeout=GIVEN_UP + 120)
    assert time.monotonic() - cut < GIVEN_UP + 60
    for node in ("first", "second"):
        assert re.search(f"{node} ended with [12]", output), (output, errors)
    assert len(re.findall("could not connect|another rank is gone or silent", errors)) >= 2, errors
