"""Submit a run to SLURM: `python launch/submit.py --site gpu --nodes 2 --train.epochs 30`, and say
afterwards what it took: `python launch/submit.py --summary JOB`."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends what imports, without a traceback

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.errors import InputError
from configs.load import load_config
from configs.visible import visible
from launch.entry import called, run_command
from launch.run_arguments import not_negative, positive
from launch.submitting.sites import CHECKOUT, EXAMPLE, Site, check, read_site
from launch.submitting.submission import Submission
from launch.sweeping.trials import of_seeds

OF_SITE = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "nodes": "nodes",
    "ranks": "ranks_per_node",
    "gpus": "gpus_per_node",
    "time": "time",
    "logs": "logs",
}
"""Options that take the place of a key of the site."""


def main(argv: Sequence[str]) -> int:
    """Check the run, let Slurm test the job, submit it; or say what jobs took."""
    given, arguments = build_parser().parse_known_args(argv)
    if given.summary:
        from launch.submitting.job_summary import summarize

        given = build_parser().parse_args(argv)  # no option of a run beside it
        say(summarize(given.summary, chosen_site(given)[1].logs_folder))
        return 0
    submission = plan(given, arguments)
    if given.dry_run:
        print(submission.shown(given.after, given.chain or 1))
        return 0
    say(submission.tested(given.after))
    if not given.test_only:
        submit(submission, given.after, given.chain)
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called(__file__),
        usage="%(prog)s [options of this command] [options of train.py]",
        description="Submit a run to Slurm with slurm/train.sbatch, which starts it again until it "
        "is finished. What a cluster needs stands in slurm/sites.yaml or "
        f"~/.config/convoy/sites.yaml ({EXAMPLE}). Other options are those of launch/train.py.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--site", metavar="NAME", help="a site of the file (default: its default)")
    add("--sites", type=Path, metavar="FILE", help="the file of sites")
    for key in ("partition", "account", "qos", "time", "logs"):
        add(f"--{key}", help="instead of the site's")
    for key, least in (("nodes", positive), ("ranks", positive), ("gpus", not_negative)):
        each = "" if key == "nodes" else " of a node"
        add(f"--{key}", type=least, metavar="N", help=f"{key}{each}, instead of the site's")
    add("--sbatch", action="append", default=[], metavar="=OPTION", help="one more of sbatch's")
    add("--after", action="append", default=[], metavar="JOB", help="start when that has ended")
    add(
        *("--chain",),
        type=positive,
        metavar="N",
        help="N jobs, one after the other, each with its own time limit, where a job may not be "
        "started again",
    )
    add("--seeds", metavar="A..B", help="an array: a run for each seed, such as 0..4 or 0,2,5")
    add("--sweep", type=Path, metavar="FILE", help="an array: a run for each line of overrides")
    add("--jobs", type=positive, metavar="N", help="of an array, at most N at a time")
    add("--test_only", "--test-only", action="store_true", help="ask Slurm when it would start")
    add("--dry_run", "--dry-run", action="store_true", help="print what would be done")
    add(
        "--summary", nargs="+", metavar="JOB", help="what jobs took: GPU hours, restarts, lost time"
    )
    return parser


def chosen_site(given: argparse.Namespace) -> tuple[str, Site]:
    """The site, with what the command line says instead."""
    name, site = read_site(given.site, given.sites)
    instead: dict[str, Any] = {
        key: value
        for option, key in OF_SITE.items()
        if (value := getattr(given, option)) is not None
    }
    site = replace(site, sbatch=[*site.sbatch, *given.sbatch], **instead)
    check(site, name)
    return name, site


def plan(given: argparse.Namespace, arguments: Sequence[str]) -> Submission:
    """The submission, of a run that launch/train.py would take.

    Raises:
        InputError: If it would not, or options do not go together.
    """
    if given.seeds is not None and given.sweep is not None:
        raise InputError("--seeds and --sweep", expected="one of them")
    array = given.seeds is not None or given.sweep is not None
    if given.jobs and not array:
        raise InputError("--jobs", expected="--seeds or --sweep beside it")
    if given.chain and array:
        raise InputError("--chain", expected="neither --seeds nor --sweep beside it")
    config = checked(arguments)
    site_name, site = chosen_site(given)
    output, name = CHECKOUT / Path(config.output_dir).expanduser(), config.name
    if not array:
        return Submission(
            name=name,
            site_name=site_name,
            site=site,
            arguments=list(arguments),
            runs=[output / name],
            restarts=0 if given.chain else None,
        )
    if given.seeds is not None:
        seeds = [int(trial.overrides["seed"]) for trial in of_seeds(given.seeds).trials]
        tasks, ends = given.seeds.replace("..", "-").replace(" ", ""), [f"seed{s}" for s in seeds]
    else:
        lines = read_lines(given.sweep)
        for number, line in enumerate(lines, start=1):
            checked([*arguments, *line], f"{given.sweep}, line {number}: ")
        tasks, ends = f"1-{len(lines)}", [str(number) for number in range(1, len(lines) + 1)]
    return Submission(
        name=name,
        site_name=site_name,
        site=site,
        arguments=[*arguments, f"--name={name}"],
        runs=[output / f"{name}_{end}" for end in ends],
        array=tasks + (f"%{given.jobs}" if given.jobs else ""),
        lines=given.sweep and given.sweep.resolve(),
    )


def checked(arguments: Sequence[str], where: str = "") -> Any:
    """The config, read where the job reads it."""
    try:
        with contextlib.chdir(CHECKOUT):
            return load_config(arguments, prog=called(__file__), description="")
    except InputError as error:
        raise InputError(f"{where}{error}") from None


def read_lines(path: Path) -> list[list[str]]:
    """The overrides of each task, as slurm/array.sbatch reads them.

    Raises:
        InputError: If it is no such file.
    """
    from configs.read_files import read_text

    if path.suffix in (".yaml", ".yml"):
        raise InputError(
            "--sweep",
            given=str(path),
            expected="a file with a line of overrides for each task",
            remedy="Submit W&B's kind with: "
            + shlex.join(["python", "launch/sweep.py", str(path), "--slurm"]),
        )
    try:
        lines = [line for line in read_text(path).splitlines() if line.split("#")[0].strip()]
        found = [shlex.split(line) for line in lines]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read the sweep file {path} ({reason})") from None
    if not found:
        raise InputError("--sweep", given=str(path), expected="a line of overrides for each task")
    return found


def submit(submission: Submission, after: Sequence[str], chain: int | None) -> None:
    """Submit a job, or one behind the other, and say where to look."""
    jobs: list[str] = []
    for _ in range(chain or 1):
        jobs.append(submission.submit([*after, *jobs[-1:]]))
    ends = f"{submission.name}-{jobs[0]}{'_*' if submission.array else ''}.out"
    say(f"Submitted {submission.name}: job {', then '.join(jobs)} on site {submission.site_name}")
    say(f"Script: {submission.logs / ends}; ranks: {submission.logs / jobs[0]}/rank*.log")
    say(f"What it took: python launch/submit.py --summary {' '.join(jobs)}")


def say(text: str) -> None:
    for line in text.splitlines():
        print(visible(line), flush=True)


if __name__ == "__main__":
    run_command(main)
