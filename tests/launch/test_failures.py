"""What happens when something goes wrong: a rank, the disk, a second signal, a cosmic ray."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from launch.entry import torchrun
from tests.support.processes import (
    ROOT,
    Finished,
    begin,
    children,
    environment,
    python_command,
    start,
    torchrun_command,
    train,
    wait,
    wait_for_step,
)
from tests.support.runs import assert_same_bits, latest_weights

pytestmark = pytest.mark.process

Arguments = Callable[..., list[str]]
PROGRAMS = {"PYTHONPATH": str(ROOT / "tests/programs")}
TRAVELS = "--parallel.compression=bf16"
"""Two ranks do not sum in each other's memory what is sent in fewer bits."""
END_SECONDS = 15.0


def faulty(fault: str, **kwargs: object) -> list[str]:
    """Options that plant a fault into rank 1."""
    options = {"hidden": [24, 16], "fault": fault, **kwargs}
    return ["--model.name=faulty:Net", f"--model.kwargs={json.dumps(options)}"]


def status_of(run: Path) -> str:
    return str(json.loads((run / "summary.json").read_text())["status"])


def test_a_rank_that_raises_ends_all_and_is_shown_once(small: Arguments, tmp_path: Path) -> None:
    command = torchrun_command(2, "launch/train.py", *small("run"), *faulty("raise"))
    finished = wait(start(command, env=PROGRAMS))
    assert finished.status != 0
    assert finished.output.count("KeyError: 'planted'") == 1
    assert "rank      : 1 (local_rank: 1)" in finished.stderr
    assert status_of(tmp_path / "run") == "failed"


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([*faulty("raise", at=5), "--compile.enabled=false"], "KeyError: 'planted'"),
        (["--precision.dtype=fp16", "--optimizer.lr=1e30", "--train.epochs=20"], "not finite"),
    ],
)
def test_a_run_that_fails_over_nccl_ends_and_says_why_once(
    small: Arguments, gpu: torch.device, options: list[str], says: str
) -> None:
    """A rank that fails alone does not wait for the others to end NCCL, and a recording that a
    traceback holds does not keep all of them from it."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU on this machine")
    device = f"--parallel.device={gpu.type}"
    command = torchrun_command(2, "launch/train.py", *small("run"), device, *options)
    finished = wait(start(command, env=PROGRAMS))
    assert finished.status != 0
    assert finished.output.count(says) == 1


@pytest.mark.slow
def test_a_launcher_without_a_folder_for_errors_hides_none(
    small: Arguments, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Our own launches have none, and leave nothing in the folder for temporary files."""
    command = [*torchrun(2), str(ROOT / "launch/train.py"), *small("run"), *faulty("raise")]
    folder = tmp_path_factory.mktemp("t")
    finished = wait(start(command, env=PROGRAMS | {"TMPDIR": str(folder)}))
    assert finished.status != 0
    assert finished.output.count("KeyError: 'planted'") == 1
    assert "rank 1 failed" in finished.stderr
    assert not list(folder.glob("torchelastic_*"))


@pytest.mark.parametrize("fault", ["die", pytest.param("raise", marks=pytest.mark.slow)])
def test_all_ranks_end_within_15_seconds(small: Arguments, tmp_path: Path, fault: str) -> None:
    """Counted from the last record, which rank 0 writes at every step."""
    command = torchrun_command(
        2, "launch/train.py", *small("run"), *faulty(fault, at=20, sleep=0.01)
    )
    process = begin(command, env=PROGRAMS)
    wait_for_step(tmp_path / "run", 15, process)
    began = time.monotonic()
    finished = wait(process)
    assert finished.status != 0
    assert time.monotonic() - began < END_SECONDS
    if fault == "die":
        assert "rank 0: another rank is gone or silent" in finished.stderr


@pytest.mark.slow  # torchrun waits 30 s for the stopped process
def test_a_hung_rank_is_given_up_on(small: Arguments, tmp_path: Path) -> None:
    """A stopped process cannot answer; rank 0 says so, and leaves when the time is over."""
    extra = ["--parallel.timeout_seconds=4", TRAVELS]
    command = torchrun_command(2, "launch/train.py", *small("run", *extra), *faulty("hang"))
    finished = wait(begin(command, env=PROGRAMS))
    assert finished.status != 0
    assert "rank 0: another rank is gone or silent" in finished.stderr
    assert status_of(tmp_path / "run") == "failed"
    said = (tmp_path / "run/hang/explained.txt").read_text()
    assert re.search(r"rank 1 does not answer \(process \d+ on .*, stopped by a signal\)", said)
    assert re.search(r"rank 0 has waited \d+ s at collective \d+ \(all_reduce.* of step 30", said)
    assert said.strip() in finished.stderr
    assert not (tmp_path / "run/hang/stacks_1.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("signal_", [signal.SIGSTOP, signal.SIGKILL])
def test_a_neighbour_that_stops_or_dies_is_named(
    small: Arguments, tmp_path: Path, signal_: signal.Signals
) -> None:
    """Gradients that two ranks sum in each other's memory are no collective of torch's."""
    rare = [f"--{key}=100000" for key in ("checkpoint.every_epochs", "evaluate.every_epochs")]
    rare += ["--logging.every_steps=500"]  # else it may be in one of torch's, too
    extra = ("--train.epochs=100000", "--parallel.timeout_seconds=4", *rare)
    process = start(torchrun_command(2, "launch/train.py", *small("run", *extra)))
    wait_for_step(tmp_path / "run", 2, process)  # records
    pids = children(process.pid)
    (pid,) = (p for p in pids if b"\0RANK=1\0" in Path(f"/proc/{p}/environ").read_bytes())
    os.kill(pid, signal_)
    while status_of(tmp_path / "run") == "running":
        time.sleep(0.05)
        assert process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # torchrun gives one that is stopped 30 s
    finished = wait(process)
    assert finished.status != 0
    assert "rank 0: another rank is gone or silent" in finished.stderr
    said = (tmp_path / "run/hang/explained.txt").read_text()
    what = "stopped by a signal" if signal_ == signal.SIGSTOP else "gone"
    assert f"rank 1 does not answer (process {pid} on " in said
    assert what in said
    waits = "has waited" if signal_ == signal.SIGSTOP else "was"
    assert re.search(rf"rank 0 {waits}.* in step \d+ at .*flat_all_reduce\.py", said), said


@pytest.mark.parametrize(
    "fault",
    ["neighbour", *(pytest.param(name, marks=pytest.mark.slow) for name in ("late", "skip"))],
)
def test_a_hang_is_explained(small: Arguments, tmp_path: Path, fault: str) -> None:
    """From the hang to the line of code: who is missing, at which collective of which step."""
    extra = ["--parallel.timeout_seconds=5", "--logging.every_steps=7"]
    extra += [TRAVELS] * (fault != "neighbour")
    command = torchrun_command(
        2, "launch/train.py", *small("run", *extra), *faulty(fault.replace("neighbour", "late"))
    )
    finished = wait(begin(command, env=PROGRAMS))
    assert finished.status != 0
    folder = tmp_path / "run/hang"
    said = (folder / "explained.txt").read_text()
    assert said.strip() in finished.stderr
    if fault == "late":
        late = (
            "rank 1 is missing at collective (\\d+) \\(all_reduce of .*\\) of step 30, where rank 0"
        )
        assert re.search(late, said)
    elif fault == "neighbour":
        assert re.search(r"rank 0 has waited \d+ s in step 30 at \S*bucket_hooks.py", said)
    if fault != "skip":
        assert re.search(r"rank 1 is in step 30 at \S*faulty.py:\d+ in commit", said)
    else:
        # Gloo aborts the rank that is sent more than it expects, and says so.
        assert "collective mismatch" in finished.stderr
        died = (
            r"rank 0 does not answer \(process .*, gone, which died at \S*faulty.py:\d+ in commit"
        )
        assert re.search(died, said)
        assert re.search(r"rank 1 was in collective \d+ \(all_reduce of .*\) of step 30", said)
    for rank in (1,) if fault == "skip" else (0, 1):
        stacks = (folder / f"stacks_{rank}.txt").read_text()
        assert stacks.startswith(f"rank {rank}, process ")
        assert "in take_steps" in stacks
        assert pickle.loads((folder / f"trace_{rank}").read_bytes())["entries"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raise", "die"])
def test_max_restarts_resumes_by_itself(small: Arguments, tmp_path: Path, fault: str) -> None:
    """The restarted ranks continue from the last checkpoint to the undisturbed end."""
    extra = ["--checkpoint.every_steps=7"]
    options = faulty(fault, once=str(tmp_path / "happened"))
    command = torchrun_command(2, "launch/train.py", *small("run", *extra), *options)
    command.insert(command.index("--standalone"), "--max-restarts=2")
    finished = wait(begin(command, env=PROGRAMS))
    assert finished.status == 0, finished.output[-3000:]
    assert (tmp_path / "happened").exists()
    assert "continuing from" in finished.stderr
    train(*small("whole", *extra), *options, ranks=2, env=PROGRAMS)
    assert_same_bits(tmp_path / "whole", tmp_path / "run")


def test_drift_names_the_rank_and_stops_the_run(small: Arguments, tmp_path: Path) -> None:
    extra = ["--parallel.drift_every_steps=10"]
    command = torchrun_command(3, "launch/train.py", *small("run", *extra), *faulty("drift"))
    finished = wait(begin(command, env=PROGRAMS))
    assert finished.status != 0
    assert "error: at step 30 the weights of rank 1 differ from the others'" in finished.stderr
    assert finished.stderr.count("error: at step") == 1
    assert status_of(tmp_path / "run") == "failed"


def test_no_drift_is_seen_where_there_is_none(small: Arguments, tmp_path: Path) -> None:
    train(*small("run", "--parallel.drift_every_steps=1"), ranks=2)
    assert status_of(tmp_path / "run") == "completed"


def test_a_second_signal_ends_at_once(small: Arguments, tmp_path: Path) -> None:
    """In a step that takes a minute, too."""
    process = begin(
        python_command("launch/train.py", *small("run"), *faulty("", sleep=60)), env=PROGRAMS
    )
    while not (tmp_path / "run/summary.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert wait(process, timeout=5).status == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("ranks", "strategy"),
    [(1, "ddp"), *(pytest.param(2, name, marks=pytest.mark.slow) for name in ("ddp", "fsdp"))],
)
def test_a_stop_request_during_evaluation_is_heard(
    small: Arguments, tmp_path: Path, ranks: int, strategy: str
) -> None:
    """The evaluation is done again, and first, when the run continues; bits and records agree."""
    extra = ["--evaluate.batch_size=1", f"--parallel.strategy={strategy}"]
    slow = faulty("", evaluation_sleep=0.05)
    command = (
        python_command("launch/train.py", *small("run", *extra), *slow)
        if ranks == 1
        else torchrun_command(2, "launch/train.py", *small("run", *extra), *slow)
    )
    process = start(command, env=PROGRAMS)
    wait_for_step(tmp_path / "run", 22, process)
    time.sleep(0.5)
    os.kill(process.pid if ranks == 1 else children(process.pid)[0], signal.SIGTERM)
    stopped = wait(process)
    assert "Stopped on request at step 22" in stopped.stdout, stopped.output
    train(
        *small("run", *extra),
        *faulty(""),
        "--checkpoint.resume",
        tmp_path / "run",
        ranks=ranks,
        env=PROGRAMS,
    )
    train(*small("whole", *extra), *faulty(""), ranks=ranks, env=PROGRAMS)
    assert_same_bits(tmp_path / "whole", tmp_path / "run")


def test_a_signal_while_torch_is_being_imported_is_remembered(
    small: Arguments, tmp_path: Path
) -> None:
    process = start(python_command("launch/train.py", *small("run", "--train.epochs=5000")))
    assert process.stderr.readline() == "loading torch ...\n"
    process.send_signal(signal.SIGTERM)
    finished = wait(process)
    assert finished.status == 75, finished.output
    assert "Stopped on request at step 1;" in finished.stdout


def limited_train(limit_bytes: int, *arguments: str) -> Finished:
    """Train where no file may grow past a limit: as when the disk is full."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    done = subprocess.run(
        [sys.executable, str(ROOT / "launch/train.py"), *arguments],
        env=environment(),
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(small: Arguments, tmp_path: Path) -> None:
    """Saves fail, the run says so and goes on, and the checkpoint from before is intact."""
    wide = '--model.kwargs={"hidden": [512], "dropout": 0.2}'
    train(*small("run", wide, "--train.max_steps=10"))
    before = latest_weights(tmp_path / "run")
    finished = limited_train(
        100_000, *small("run", wide, "--checkpoint.every_steps=5", "--train.max_steps=30")
    )
    assert finished.status == 1, finished.output
    assert "the checkpoint of step 15 was not saved" in finished.stderr
    assert "training goes on" in finished.stderr
    assert "error: the checkpoint of step 30 was not saved" in finished.stderr
    assert (tmp_path / "run/checkpoints/latest").resolve().name == "step_00000010"
    assert not list((tmp_path / "run/checkpoints").glob(".writing-*"))
    after = latest_weights(tmp_path / "run")
    assert all(bool((after[name] == weight).all()) for name, weight in before.items())
    train(*small("run", wide, "--train.max_steps=30"))
    train(*small("whole", wide, "--train.max_steps=30"))
    assert_same_bits(tmp_path / "whole", tmp_path / "run")


def test_wandb_does_not_turn_a_stop_into_noise(small: Arguments, tmp_path: Path) -> None:
    """SIGINT to the whole process group, as Ctrl-C sends it."""
    extra = ["--logging.wandb.mode=offline", "--train.epochs=5000", "--data.workers=1"]
    process = begin(
        python_command("launch/train.py", *small("run", *extra)), env={"WANDB_SILENT": "true"}
    )
    wait_for_step(tmp_path / "run", 30, process)
    os.killpg(process.pid, signal.SIGINT)
    stopped = wait(process)
    assert stopped.status == 75, stopped.output
    assert "Traceback" not in stopped.output
    assert status_of(tmp_path / "run") == "preempted"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_exact_run_travels_over_4_2_1_and_4_ranks(
    small: Arguments, tmp_path: Path, dtype: str
) -> None:
    """Dropout, batch norm, accumulation, the short last batch: the bits of an undisturbed run."""
    extra = [
        "--parallel.reduction=exact",
        "--parallel.shards=4",
        "--train.global_batch_size=32",
        "--train.micro_batch_size=4",
        "--model.kwargs.batch_norm=true",
        f"--precision.dtype={dtype}",
    ]
    train(*small("whole", *extra, "--train.max_steps=30"))
    for ranks, steps in ((4, 7), (2, 15), (1, 22), (4, 30)):
        finished = train(*small("moved", *extra, f"--train.max_steps={steps}"), ranks=ranks)
        assert "dropout draws new random numbers" not in finished.stderr
    assert_same_bits(tmp_path / "whole", tmp_path / "moved")


def lose_a_node(small: Arguments, port: int, *extra: str) -> list[subprocess.Popen[str]]:
    """Two torchrun agents, one rank each, that form one elastic job of 1 to 2 nodes."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=1:2",
        "--nproc_per_node=1",
        "--max-restarts=3",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=localhost:{port}",
        "--rdzv-id=elastic",
        "--rdzv-conf=last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3",
        str(ROOT / "launch/train.py"),
        *small("run", *extra),
        *faulty("", sleep=0.03),
    ]
    first = start(command, env=PROGRAMS)
    time.sleep(1)  # the first agent hosts the rendezvous and is the one that stays
    return [first, start(command, env=PROGRAMS)]


@pytest.mark.slow
def test_an_elastic_job_that_loses_a_node_continues_with_the_ranks_left(
    small: Arguments, tmp_path: Path
) -> None:
    extra = ["--parallel.reduction=exact", "--parallel.shards=4", "--train.epochs=20"]
    extra += ["--checkpoint.every_steps=10"]
    port = 29000 + os.getpid() % 900
    first, second = lose_a_node(small, port, *extra)
    wait_for_step(tmp_path / "run", 40, first)
    for pid in (second.pid, *children(second.pid)):  # the agent and its rank
        os.kill(pid, signal.SIGKILL)
    wait(second)
    finished = wait(first)
    assert finished.status == 0, finished.output[-3000:]
    environment_file = json.loads((tmp_path / "run/environment.json").read_text())
    assert environment_file["world_size"] == 1
    train(*small("whole", *extra), *faulty(""), env=PROGRAMS)
    assert_same_bits(tmp_path / "whole", tmp_path / "run")
