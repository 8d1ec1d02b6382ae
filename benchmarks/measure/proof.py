"""The proof on a GPU: checks, then measurements in the order of what is missed most, in minutes.

    python benchmarks/run.py gpu --seconds 480           # or: make gpu
    python benchmarks/run.py gpu --continue              # what an earlier call had no time for
    python benchmarks/run.py gpu --dry-run --output DIR  # every part on a CPU, with small sizes

Nothing is fetched, and nothing need be installed but what the project needs; peers that are not
there are named. Each part has a share of the time, and what it does not need goes to the later
ones. results.json is written after every run, so that a kill leaves what was measured; the page and
its pictures after every part.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from benchmarks.measure import results
from benchmarks.measure.peers import NO_TIME
from benchmarks.measure.processes import ROOT, ended_within
from benchmarks.measure.proof_jobs import Found, Machine, Seen
from benchmarks.measure.proof_page import PAGE, write_page
from benchmarks.measure.proof_parts import (
    check,
    group,
    networks,
    peers,
    precisions,
    resume,
    sharding,
)
from configs.errors import InputError
from trainer.checkpoints.atomic_files import make_folder, write_atomically

FOLDER = ROOT / "benchmarks" / "results" / "gpu"
RESULTS = "results.json"
NEEDED = ("torch", "numpy", "jsonargparse", "yaml", "rich", "safetensors")
OLDEST_TORCH = (2, 11)
LEAST_SECONDS = 1.0
"""A part that would get less is not begun."""


@dataclass(frozen=True, slots=True)
class Part:
    """One question, and how much of the time it gets beside the others."""

    name: str
    measure: Callable[[Machine, float, Seen], Found]
    share: float


PARTS = (
    Part("checks", check, 12),
    Part("peers", peers, 22),
    Part("precisions", precisions, 20),
    Part("networks", networks, 22),
    Part("group", group, 8),
    Part("resume", resume, 10),
    Part("sharding", sharding, 6),
)


def prove(argv: Sequence[str]) -> int:
    """Measure every part; status 1 if one failed."""
    arguments = parse(argv)
    if arguments.page_only:
        write_page(arguments.output, json.loads((arguments.output / RESULTS).read_text()))
        return 0
    machine = Machine(
        device="cpu" if arguments.dry_run else "cuda", threads=len(os.sched_getaffinity(0))
    )
    content: Found = {
        "command": shlex.join(["python", "benchmarks/run.py", "gpu", *argv]),
        "environment": environment(arguments.commit),
        "settings": {"device": machine.device, "seconds": arguments.seconds},
        "parts": {},
    }
    if arguments.go_on:
        content = continued(arguments.output / RESULTS, content)
    keeping = Keeping(arguments.output, content)
    chosen = [part for part in PARTS if part.name in arguments.only]
    take(machine, chosen, arguments.seconds, keeping)
    print(f"written: {arguments.output / RESULTS} and {PAGE} beside it")
    return 1 if any(part["status"] == "failed" for part in content["parts"].values()) else 0


def continued(path: Path, now: Found) -> Found:
    """What an earlier call found, to be completed by this one.

    Raises:
        InputError: If there is nothing, or it is from another card or another torch.
    """
    try:
        before: Found = json.loads(path.read_text(encoding="utf-8"))
        same = [before["environment"].get("card"), before["environment"]["packages"]["torch"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        expected = f"results of an earlier call ({type(error).__name__})"
        raise InputError("--continue", given=path, expected=expected) from None
    here = [now["environment"].get("card"), now["environment"]["packages"]["torch"]]
    if same != here:
        expected = f"what {path} was measured on: {same}"
        raise InputError("--continue", given=here, expected=expected)
    later = {"command": now["command"], "git_commit": now["environment"]["git_commit"]}
    return before | {"continued": [*before.get("continued", []), later]}


class Keeping:
    """What was found, on disk as soon as it is.

    Args:
        folder: Where to.
        content: The whole of it; its entry `parts` grows.
    """

    def __init__(self, folder: Path, content: Found) -> None:
        self.folder = folder
        self.content = content

    def keep(self, part: str, found: Found) -> None:
        """Take over what there is of a part."""
        self.content["parts"][part] = found
        text = json.dumps(self.content, indent=2) + "\n"
        write_atomically(self.folder / RESULTS, text, durable=False)

    def draw(self) -> None:
        write_page(self.folder, self.content)


def take(machine: Machine, parts: Sequence[Part], seconds: float, keeping: Keeping) -> None:
    """Measure parts in their order; one that fails says why, and the next one begins.

    The time left is shared anew before each, and no command goes on when all of it has passed.
    """
    end = time.monotonic() + seconds
    with ended_within(seconds):
        for number, part in enumerate(parts):
            left = max(end - time.monotonic(), 0.0)
            mine = left * part.share / sum(later.share for later in parts[number:])
            if not _complete(before := keeping.content["parts"].get(part.name, {})):
                rows = [row for row in before.get("rows", []) if row["status"] == "measured"]
                taken = _taken(part, replace(machine, measured=rows), mine, keeping)
                keeping.keep(part.name, taken)
            keeping.draw()


def _complete(found: Found) -> bool:
    """Whether an earlier call left nothing to measure in a part."""
    rows = found.get("rows", [])
    return found.get("status") == "measured" and all(row["status"] == "measured" for row in rows)


def _taken(part: Part, machine: Machine, seconds: float, keeping: Keeping) -> Found:
    if seconds < LEAST_SECONDS:
        return {"status": "skipped", "reason": NO_TIME}
    print(f"{part.name}: up to {seconds:.0f} s", file=sys.stderr, flush=True)
    began, latest = time.monotonic(), Found(rows=machine.measured) if machine.measured else Found()

    def seen(found: Found) -> None:
        latest.update(found)
        keeping.keep(part.name, {"status": "unfinished"} | latest)

    seen({})
    try:
        found = part.measure(machine, seconds, seen)
    except Exception as error:  # whatever it is: the machine is lent for minutes
        reason = f"{type(error).__name__}: {error}"
        found = latest | {"status": "failed", "reason": reason}
    return {"status": _status(found)} | found | {"seconds": round(time.monotonic() - began, 1)}


def _status(found: Found) -> str:
    """Failed if anything in it is."""
    rows = [*found.get("rows", []), *found.get("contenders", [])]
    return "failed" if any(row["status"] == "failed" for row in rows) else "measured"


def environment(commit: str | None) -> Found:
    """Code, versions and hardware, down to the card and what drives it."""
    import torch

    found = results.environment()
    if commit is not None:
        found |= {"git_commit": commit, "git_dirty": False}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found["card"] = {
            "name": card.name,
            "memory_bytes": card.total_memory,
            "multiprocessors": card.multi_processor_count,
            "cuda": torch.version.cuda,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),  # type: ignore[no-untyped-call]
        }
    return found


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments with their defaults.

    Raises:
        InputError: For what cannot be measured, or not on this machine, or not be written.
    """
    parser = argparse.ArgumentParser(
        prog="benchmarks/run.py gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [part.name for part in PARTS]
    add = parser.add_argument
    add("--seconds", type=float, default=480, help="for everything (default: 480)")
    add("--only", default=",".join(names), metavar="PART,...", help=f"of {', '.join(names)}")
    add("--output", type=Path, help="folder of results.json (default: benchmarks/results/gpu)")
    add("--commit", help="of this code, where git cannot tell: in a copy without its history")
    add(
        "--continue",
        dest="go_on",
        action="store_true",
        help="measure what results.json lacks: parts that failed, networks that had no turn",
    )
    add("--dry-run", action="store_true", help="on a CPU, with small sizes: whether it works")
    add("--page-only", action="store_true", help="make the page again from results.json")
    arguments = parser.parse_args(argv)
    arguments.only = arguments.only.split(",")
    if unknown := set(arguments.only) - set(names):
        raise InputError("--only", given=", ".join(sorted(unknown)), expected=", ".join(names))
    if arguments.seconds < 1:
        raise InputError("--seconds", given=arguments.seconds, expected="1 or more")
    if arguments.output is None and arguments.dry_run:
        raise InputError("--output", expected="a folder: what a dry run measures is not to be kept")
    arguments.output = (arguments.output or FOLDER).resolve()
    if not arguments.page_only:
        _check_machine(arguments.dry_run)
        make_folder("--output", arguments.output)
    return arguments


def _check_machine(dry: bool) -> None:
    """Refuse before the first minute what would fail in every part."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise InputError(
            "packages of this Python",
            given=f"no {', no '.join(missing)}",
            expected=", ".join(NEEDED),
            remedy="Install them, or put a folder that holds them on PYTHONPATH: children see it.",
        )
    import torch

    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST_TORCH:
        raise InputError("torch", given=torch.__version__, expected="2.11 or newer")
    if not dry and not torch.cuda.is_available():
        raise InputError(
            "the GPU",
            given="none that torch can use",
            expected="a CUDA device",
            remedy="`--dry-run --output FOLDER` tries every part on the CPU.",
        )
