"""Kill a run again and again, and compare it with one that was left alone.

    python launch/torture.py --kills 20

Every round trains a small network twice: once undisturbed, once with ranks killed at random moments
(while starting, between steps, in the middle of a checkpoint write) and started again by the same
command. Both must end with the same bits, and every global batch must have held the same samples in
every try. In a round with exact reduction every start has another number of ranks.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch.entry import TRAIN, run_command, train_command

if TYPE_CHECKING:
    from launch.crash_test.sample_recorder import Deliveries

NUM_SAMPLES, BATCH, EPOCHS = 203, 16, 9  # 13 steps an epoch, the last one short
TIMEOUT_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is trained, and on how many ranks each start may run."""

    name: str
    ranks: tuple[int, ...]
    options: tuple[str, ...] = ()


SCENARIOS = (
    Scenario("1 rank, cosine", (1,), ("--schedule.name=cosine",)),
    Scenario("2 ranks", (2,), ("--train.ema_decay=0.9", "--train.clip_norm=1")),
    Scenario(
        "exact, 1 to 4 ranks", (1, 2, 4), ("--parallel.reduction=exact", "--parallel.shards=4")
    ),
    Scenario("3 ranks", (3,), ("--optimizer.name=sgd",)),
    Scenario("2 ranks, workers, fp16", (2,), ("--data.workers=1", "--precision.dtype=fp16")),
)


@dataclass(slots=True)
class Round:
    """One disturbed run and its verdict."""

    scenario: str
    kills: dict[str, int] = field(default_factory=dict)
    starts: int = 0
    repeated_steps: int = 0
    same_bits: bool = False
    same_samples: bool = False
    seconds: float = 0.0


def main(argv: Sequence[str]) -> int:
    """Torture runs until enough kills have been dealt; status 1 if any run came out different."""
    parser = argparse.ArgumentParser(
        prog="launch/torture.py", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--kills", type=int, default=20, help="kills in all (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kill schedule")
    parser.add_argument("--output", type=Path, help="write the result to this JSON file")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        rounds: list[Round] = []
        for done in torture(Path(folder), arguments.kills, random.Random(arguments.seed)):
            rounds.append(done)
            print(f"round {len(rounds)}: {asdict(done)}", flush=True)
            if arguments.output is not None:  # after every round: a long torture may be cut short
                write_result(arguments.output, rounds, arguments.seed)
    show(rounds)
    return 0 if all(item.same_bits and item.same_samples for item in rounds) else 1


def torture(folder: Path, kills: int, chance: random.Random) -> Iterator[Round]:
    """Rounds over all scenarios in turn until `kills` kills were dealt."""
    from launch.crash_test.sample_recorder import read_deliveries

    references: dict[str, Path] = {}
    for number in itertools.count():
        if kills <= 0:
            return
        scenario = SCENARIOS[number % len(SCENARIOS)]
        if scenario.name not in references:
            references[scenario.name] = folder / f"reference-{len(references)}"
            undisturbed = start(references[scenario.name], 0, scenario.ranks[0], scenario)
            if undisturbed.wait(TIMEOUT_SECONDS) != 0:
                raise RuntimeError(f"the undisturbed run failed: {tail(references[scenario.name])}")
        run = folder / f"round-{number}"
        began = time.monotonic()
        done = disturb(run, scenario, min(kills, 12), chance)
        done.seconds = round(time.monotonic() - began, 1)
        reference = references[scenario.name]
        weights = "run/checkpoints/latest/model.safetensors"
        done.same_bits = (run / weights).read_bytes() == (reference / weights).read_bytes()
        expected, found = read_deliveries(reference), read_deliveries(run)
        done.same_samples = same_samples(expected, found)
        done.repeated_steps = found.num_calls - expected.num_calls
        kills -= sum(done.kills.values())
        yield done


def disturb(run: Path, scenario: Scenario, kills: int, chance: random.Random) -> Round:
    """Start, kill, start again ... and let the last start finish."""
    done = Round(scenario.name)
    while True:
        ranks = chance.choice(scenario.ranks)
        process = start(run, done.starts, ranks, scenario)
        done.starts += 1
        kind = None
        if sum(done.kills.values()) < kills:
            kind = strike(process, run, chance, launcher=ranks > 1)
        status = process.wait(TIMEOUT_SECONDS)
        if kind is not None:
            done.kills[kind] = done.kills.get(kind, 0) + 1
        elif status == 0:
            return done
        else:
            raise RuntimeError(f"an undisturbed start failed with {status}: {tail(run)}")


def start(run: Path, number: int, ranks: int, scenario: Scenario) -> subprocess.Popen[bytes]:
    """The same command every time; its working folder is where the witness writes to."""
    folder = run / f"try-{number:03d}"
    folder.mkdir(parents=True)
    command = train_command(
        ranks,
        "--name=run",
        f"--output_dir={run}",
        "--data.dataset=launch.crash_test.sample_recorder:samples",
        f'--model.kwargs={{"num_samples": {NUM_SAMPLES}}}',
        "--model.name=launch.crash_test.sample_recorder:Witness",
        f"--train.global_batch_size={BATCH}",
        f"--train.epochs={EPOCHS}",
        "--checkpoint.every_steps=3",
        "--logging.every_steps=1",
        "--logging.progress=off",
        "--parallel.timeout_seconds=20",
        *scenario.options,
    )
    with (folder / "output.txt").open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TRAIN.parents[1])},
            start_new_session=True,
        )


def strike(
    process: subprocess.Popen[bytes], run: Path, chance: random.Random, *, launcher: bool
) -> str | None:
    """Wait for a random moment and kill; None if the run had ended by then.

    With a launcher its children are the ranks; without one the process is the only rank.
    """
    moment = chance.choices(("starting", "writing", "training"), (2, 3, 5))[0]
    deadline = time.monotonic() + TIMEOUT_SECONDS
    before, steps = count_lines(run), chance.randint(1, 25)
    pause = chance.uniform(0.0, 4.0) if moment == "starting" else chance.uniform(0.0, 0.03)
    while process.poll() is None and time.monotonic() < deadline and moment != "starting":
        if moment == "writing" and any((run / "run/checkpoints").glob(".writing-*")):
            break
        if moment == "training" and count_lines(run) - before >= steps:
            break
        time.sleep(0.001)
    time.sleep(0.0 if moment == "writing" else pause)
    if process.poll() is not None:
        return None
    ranks = children(process.pid) if launcher else []
    how = chance.choices(("SIGKILL rank", "SIGKILL all", "SIGTERM rank"), (6, 3, 1))[0]
    targets = (
        [process.pid, *ranks] if how == "SIGKILL all" else [chance.choice(ranks or [process.pid])]
    )
    for pid in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM if how == "SIGTERM rank" else signal.SIGKILL)
    return f"{how}, {moment}"


def children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def count_lines(run: Path) -> int:
    path = run / "run/metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def same_samples(expected: Deliveries, found: Deliveries) -> bool:
    """The last try of every global batch held all its samples, and no try held others."""
    return found.last == expected.last and all(
        ids <= set(expected.last[call]) for call, ids in found.every
    )


def tail(run: Path) -> str:
    newest = max(run.glob("try-*/output.txt"))
    return newest.read_text(errors="replace")[-3000:]


def show(rounds: list[Round]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{sum(sum(item.kills.values()) for item in rounds)} kills")
    for heading in ("run", "kills", "starts", "steps repeated", "samples", "bits", "seconds"):
        table.add_column(heading)
    for item in rounds:
        table.add_row(
            item.scenario,
            str(sum(item.kills.values())),
            str(item.starts),
            str(item.repeated_steps),
            "same" if item.same_samples else "DIFFERENT",
            "same" if item.same_bits else "DIFFERENT",
            f"{item.seconds:.0f}",
        )
    Console().print(table)


def write_result(path: Path, rounds: list[Round], seed: int) -> None:
    from trainer.checkpoints.environment import describe_machine

    kinds: dict[str, int] = {}
    for item in rounds:
        for kind, count in item.kills.items():
            kinds[kind] = kinds.get(kind, 0) + count
    result = {
        "kills": sum(kinds.values()),
        "kinds": dict(sorted(kinds.items())),
        "different": sum(not (item.same_bits and item.same_samples) for item in rounds),
        "seed": seed,
        "environment": describe_machine(),
        "rounds": [asdict(item) for item in rounds],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
