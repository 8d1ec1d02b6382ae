"""The proof on a GPU: how its time is shared and kept, and all of it on a CPU, in small."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.measure.processes import CommandFailed, ended_within, kill_when, run
from benchmarks.measure.proof import PARTS, Keeping, Part, continued, parse, take
from benchmarks.measure.proof_jobs import Found, Machine, Seen
from benchmarks.measure.proof_page import TABLES, TITLES, rate, write_page
from configs.errors import InputError
from tests.support.processes import python_command, start, wait

MACHINE = Machine(device="cpu", threads=1)


def keeping(folder: Path) -> Keeping:
    environment = {
        "git_commit": None,
        "git_dirty": False,
        "python": "3.12.3",
        "packages": {"torch": "2.11.0+cu130", "jax": None},
        "card": {"name": "A card", "memory_bytes": 80 << 30, "cuda": "13.0", "nccl": "2.28"},
    }
    settings = {"device": "cuda", "seconds": 480}
    content = {"command": "x", "environment": environment, "settings": settings, "parts": {}}
    return Keeping(folder, content)


def stored(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())["parts"]
    return found


def test_every_part_has_a_title_and_a_table() -> None:
    names = [part.name for part in PARTS]
    assert list(TITLES) == list(TABLES) == names


def test_time_that_a_part_leaves_goes_to_the_later_ones(tmp_path: Path) -> None:
    """Law: shares are of the time left; one that fails or has no time left stops nobody."""
    given: dict[str, float] = {}

    def quick(machine: Machine, seconds: float, seen: Seen) -> Found:
        given.setdefault("quick", seconds)
        return {}

    def broken(machine: Machine, seconds: float, seen: Seen) -> Found:
        given["broken"] = seconds
        seen({"rows": [], "products_flops_per_second": 1.0})
        assert stored(tmp_path)["networks"]["status"] == "unfinished"
        raise ValueError("the reason")

    def slow(machine: Machine, seconds: float, seen: Seen) -> Found:
        given["slow"] = seconds
        return {"rows": [{"status": "failed", "reason": "x", "title": "A", "mode": "b"}]}

    parts = (
        Part("checks", quick, 1),
        Part("networks", broken, 1),
        Part("group", slow, 2),
        Part("resume", quick, 1e-9),
    )
    take(MACHINE, parts, 40.0, keeping(tmp_path))
    assert given["quick"] == pytest.approx(10, abs=1)
    assert given["broken"] == pytest.approx(40 / 3, abs=1)
    assert given["slow"] == pytest.approx(40, abs=2)
    found = stored(tmp_path)
    assert found["networks"]["reason"] == "ValueError: the reason"
    assert found["networks"]["products_flops_per_second"] == 1.0
    assert [found[part.name]["status"] for part in parts] == [
        "measured",
        "failed",
        "failed",
        "measured",
    ]
    assert "ValueError: the reason" in (tmp_path / "README.md").read_text()
    take(MACHINE, parts[:1], 0.5, keeping(tmp_path))
    assert stored(tmp_path)["checks"] == {"status": "skipped", "reason": "no time was left for it"}


def test_a_later_call_measures_what_an_earlier_one_had_no_time_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: what was measured stays, also if the later call is killed at once."""
    row = {"name": "vit", "title": "ViT", "mode": "eager", "status": "measured", "seconds": 1}
    late = row | {"mode": "captured", "status": "skipped", "reason": "no time was left for it"}
    earlier = keeping(tmp_path)
    earlier.keep("checks", {"status": "measured", "summary": "3 passed"})
    earlier.keep("resume", {"status": "measured", "rows": [row, late]})
    now = earlier.content | {"command": "y", "parts": {}}
    later = Keeping(tmp_path, continued(tmp_path / "results.json", now))
    assert later.content["continued"] == [{"command": "y", "git_commit": None}]

    def never(machine: Machine, seconds: float, seen: Seen) -> Found:
        raise AssertionError("the part is complete")

    def measure(machine: Machine, seconds: float, seen: Seen) -> Found:
        assert stored(tmp_path)["resume"] == {"status": "unfinished", "rows": [row]}
        assert machine.known(row | {"seconds": 2}) == row
        assert machine.known(late) is None
        seen({"rows": machine.beside([])})
        assert stored(tmp_path)["resume"]["rows"] == [row]
        return {"rows": [row, late | {"status": "measured", "same_bits": True}]}

    monkeypatch.setattr(later, "draw", lambda: None)
    take(MACHINE, (Part("checks", never, 1), Part("resume", measure, 1)), 40.0, later)
    resume = stored(tmp_path)["resume"]
    assert [item["status"] for item in resume["rows"]] == ["measured"] * 2, resume
    assert stored(tmp_path)["checks"]["summary"] == "3 passed"
    other = now | {"environment": now["environment"] | {"card": None}}
    with pytest.raises(InputError, match="was measured on"):
        continued(tmp_path / "results.json", other)
    with pytest.raises(InputError, match="results of an earlier call"):
        continued(tmp_path / "nothing.json", now)


@pytest.mark.process
def test_no_command_outlives_the_time_that_was_given() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    began = time.monotonic()
    with ended_within(1.5), ended_within(100), pytest.raises(CommandFailed, match="no end after"):
        run(sleep, threads=1)
    with ended_within(0.3), pytest.raises(CommandFailed, match="not ready to be killed in time"):
        kill_when(lambda: False, sleep, threads=1)
    assert time.monotonic() - began < 20
    with pytest.raises(CommandFailed, match="not ready"):
        kill_when(lambda: False, [sys.executable, "-c", "pass"], threads=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=peers,nothing"], "--only: given 'nothing'"),
        (["--seconds=0"], "--seconds"),
        (["--dry-run"], "--output: expected a folder"),
        (["--dry-run", "--output=/proc/nowhere"], "a folder that can be made"),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_begun() -> None:
    with pytest.raises(InputError, match="--dry-run --output FOLDER"):
        parse([])


def test_a_language_model_is_measured_in_tokens(tmp_path: Path) -> None:
    """Law: the page shows rates, and part of the products' rate, of what was measured."""
    row = {
        "title": "GPT",
        "mode": "captured",
        "status": "measured",
        "samples_per_step": 8,
        "tokens_per_sample": 1000,
        "step_seconds": 0.5,
        "flops_per_step": 10**12,
        "peak_memory_bytes": 2**30,
        "compile_seconds": 0.0,
        "backend": "",
        "runs_as": {"reduction": "none", "steps": "one by one"},
        "weights_digest": [1, 2],
    }
    assert rate(row) == 16_000
    assert rate(row | {"tokens_per_sample": None}) == 16
    kept = keeping(tmp_path)
    other = row | {"mode": "eager", "weights_digest": [1, 3]}
    kept.keep("networks", {"status": "measured", "rows": [row], "products_flops_per_second": 8e12})
    kept.keep("group", {"status": "measured", "rows": [row, other]})
    kept.draw()
    page = (tmp_path / "README.md").read_text()
    assert "| GPT | captured | 16,000 tokens/s | 500.000 | 25.0% | 1,024 |" in page
    assert "card: A card, 80 GiB, CUDA 13.0" in page
    assert "OTHER BITS after captured and eager steps" in page
    assert (tmp_path / "networks.png").stat().st_size > 1000
    write_page(tmp_path, kept.content | {"parts": {}})
    assert "GPT" not in (tmp_path / "README.md").read_text()


@pytest.mark.process
@pytest.mark.slow
def test_all_of_it_works_on_a_cpu(tmp_path: Path) -> None:
    """Law: every part measures, says how and where, and a kill leaves what was measured."""
    command = python_command("benchmarks/run.py", "gpu", "--dry-run", f"--output={tmp_path}")
    process = start([*command, "--seconds=900"], cwd=tmp_path)
    deadline = time.monotonic() + 600  # where the machine is shared; alone, about a minute
    results = tmp_path / "results.json"
    while not results.exists() or "sharding" not in stored(tmp_path):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    finished = wait(process)
    found = stored(tmp_path)
    assert found.pop("sharding")["status"] == "unfinished"
    assert {part["status"] for part in found.values()} == {"measured"}, finished.output + str(found)
    assert "skipped" in found["checks"]["summary"]
    assert [item["name"] for item in found["peers"]["contenders"]] == ["convoy", "pytorch"]
    assert [case["precision"] for case in found["precisions"]["cases"]] == ["fp32", "fp16"]
    assert {row["name"] for row in found["networks"]["rows"]} == {"resnet18", "vit", "gpt"}
    assert all(row["flops_per_step"] > 0 for row in found["networks"]["rows"])
    assert [row["backend"] for row in found["group"]["rows"]] == ["gloo"] * 2
    assert [row["same_bits"] for row in found["resume"]["rows"]] == [True]
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "results.json",
        "peers.png",
        "precisions.png",
        "networks.png",
    }
