"""The parts of the proof on a GPU: each measures, and hands over what there is after every run."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from benchmarks.measure.contenders import Settings, choose
from benchmarks.measure.peers import NO_TIME, compare
from benchmarks.measure.precisions import (
    Case,
    Network,
    all_cases,
    measure_precisions,
    product_rate,
)
from benchmarks.measure.processes import ROOT, CommandFailed, kill_when, run
from benchmarks.measure.proof_jobs import (
    CAPTURED,
    EXECUTED,
    MAIN,
    MODES,
    Found,
    Job,
    Machine,
    Seen,
    jobs,
    measured_runs,
)
from configs.schema import RunConfig
from launch.entry import train_command

PEERS = "convoy,convoy-tf32,pytorch,accelerate,jax-scan,jax-scan-tf32"


def check(machine: Machine, seconds: float, seen: Seen) -> Found:
    """`pytest -m gpu` over the files that have such tests."""
    if find_spec("pytest") is None:
        return {"status": "skipped", "reason": "pytest is not installed"}
    files = [
        str(path)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    options: tuple[str, ...] = (
        "-q",
        "-m",
        "gpu and not slow",
        "--tb=short",
        "--continue-on-collection-errors",
    )
    if find_spec("xdist") is not None:  # each process waits for itself more than for the GPU
        options += (f"--numprocesses={max(min(machine.threads // 2, 8), 1)}",)
    command = [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", *files]
    try:
        output = run(command, threads=1, timeout_seconds=seconds, cwd=ROOT).stdout
    except CommandFailed as error:
        return {"status": "failed", "reason": str(error)}
    return {"summary": output.strip().splitlines()[-1].strip("= ")}


def peers(machine: Machine, seconds: float, seen: Seen) -> Found:
    """The main job against its peers, in interleaved rounds."""
    settings = Settings(
        epochs=1 if machine.dry else 3,
        threads=machine.threads,
        device=machine.device,
        max_steps=20 if machine.dry else None,
    )
    chosen = choose("convoy,pytorch" if machine.dry else PEERS)
    rounds = 1 if machine.dry else 9
    described = asdict(settings) | {"rounds": rounds}

    def found(results: list[Found]) -> Found:
        return {"settings": described, "contenders": results}

    return found(compare(chosen, settings, rounds, seconds, lambda now: seen(found(now))))


def precisions(machine: Machine, seconds: float, seen: Seen) -> Found:
    """Rates in every precision, as a part of what square products reach in it."""
    tiny = Network(name="small", hidden=(32,), batch_size=16, steps=8)
    return measure_precisions(
        [Case(tiny, name, "auto") for name in ("fp32", "fp16")]
        if machine.dry
        else all_cases(machine.device),
        rounds=1 if machine.dry else 9,
        threads=machine.threads,
        device=machine.device,
        quick=False,
        seconds=seconds,
        seen=seen,
    )


def networks(machine: Machine, seconds: float, seen: Seen) -> Found:
    """Three networks in bf16, eager, recorded and compiled."""
    peak = product_rate("bf16", machine.device)
    modes = {"eager": EXECUTED} if machine.dry else MODES
    items = [(job, mode, modes[mode]) for mode in modes for job in jobs(machine.dry)]
    return {"products_flops_per_second": peak} | measured_runs(
        machine, items, seconds, lambda found: seen({"products_flops_per_second": peak} | found)
    )


def group(machine: Machine, seconds: float, seen: Seen) -> Found:
    """Steps with their collectives in a process group of one rank, recorded and not."""
    modes = {"eager": EXECUTED} if machine.dry else {"eager": EXECUTED, "captured": CAPTURED}
    items = [(job, mode, modes[mode]) for job in (MAIN, jobs(machine.dry)[1]) for mode in modes]
    return measured_runs(machine, items, seconds, seen, "--group")


def sharding(machine: Machine, seconds: float, seen: Seen) -> Found:
    """FSDP2 over one rank, compiled block by block, beside the same network without it."""
    compiled = EXECUTED if machine.dry else MODES["compiled"]
    gpt = jobs(machine.dry)[2]
    items = [(gpt, way, (*compiled, f"--parallel.strategy={way}")) for way in ("fsdp", "ddp")]
    return measured_runs(machine, items, seconds, seen, "--group")


def resume(machine: Machine, seconds: float, seen: Seen) -> Found:
    """A run that is killed and started again, beside one left alone: their weights, bit for bit."""
    known = "deterministic" in RunConfig.__dataclass_fields__
    asked = ("--deterministic=true",) if known else ()
    options = ("--compile.enabled=false", "--evaluate.every_epochs=null", *asked)
    end = time.monotonic() + seconds
    rows: list[Found] = []
    for job in [MAIN] if machine.dry else jobs(False)[:2]:
        row: Found = {"name": job.name, "title": job.title, "options": options}
        if before := machine.known(row):
            row = before
        elif time.monotonic() > end:
            row |= {"status": "skipped", "reason": NO_TIME}
        else:
            print(f"{job.title}, killed and resumed", file=sys.stderr, flush=True)
            try:
                row |= killed_and_resumed(machine, job, options)
            except CommandFailed as error:
                row |= {"status": "failed", "reason": str(error)}
        rows.append(row)
        seen({"deterministic": known, "rows": machine.beside(rows)})
    return {"deterministic": known, "rows": rows}


def killed_and_resumed(machine: Machine, job: Job, options: Sequence[str]) -> Found:
    """Whether a run ends with the same weights if it is killed after its first checkpoint.

    Raises:
        CommandFailed: If a run fails, or is over before it could be killed.
    """
    often = f"--checkpoint.every_steps={job.steps // 10}"
    digests = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        for name in ("alone", "killed"):
            command = train_command(1, *job.run(machine, Path(folder, name), *options, often))
            directory = Path(folder, name, "run")
            latest = directory / "checkpoints" / "latest"
            if name == "killed":
                kill_when(latest.exists, command, threads=machine.threads)
                if json.loads((directory / "summary.json").read_text())["status"] != "running":
                    raise CommandFailed("the run had ended before it was killed")
            run(command, threads=machine.threads)
            digests.append(hashlib.sha256((latest / "model.safetensors").read_bytes()).hexdigest())
    return {"status": "measured", "same_bits": digests[0] == digests[1], "sha256": digests}
