"""Several runs of one config: `python launch/sweep.py --seeds 0..4 --config mnist_fast`, or
`python launch/sweep.py configs/sweeps/random.yaml --trials 12`."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends what imports, without a traceback

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.errors import InputError
from configs.load import load_config
from configs.visible import visible
from launch.entry import EXIT_FAILED, called, run_command
from launch.run_arguments import positive
from launch.sweeping.trials import Sweep, Trial, of_seeds, read_sweep, rungs
from trainer.ranks.stop_signals import EXIT_PREEMPTED

if TYPE_CHECKING:
    from configs.schema import RunConfig
    from launch.sweeping.running import Halved

TRIALS, RESULT = "trials.json", "sweep.json"


def main(argv: Sequence[str]) -> int:
    """Plan, write the plan down, train what is left of it, and say which trial is best."""
    # Not a positional of argparse, which would take the value of an option that it does not know.
    named = Path(argv[0]) if argv and not argv[0].startswith("-") else None
    arguments, overrides = build_parser().parse_known_args(argv[1:] if named else argv)
    arguments.sweep = named
    sweep = plan(arguments)
    if sweep.config and not any(o.startswith("--config") for o in overrides):
        overrides = [f"--config={sweep.config}", *overrides]
    base, epochs = check(sweep, overrides)
    at = rungs(arguments.halving, arguments.factor, epochs) if arguments.halving else []
    folder = Path(base.output_dir).expanduser() / (arguments.name or default_name(arguments, base))
    halving = {"rungs": at, "factor": arguments.factor} if at else None
    write_plan(folder, {"overrides": overrides, "halving": halving, **sweep.to_json()})
    if arguments.slurm:
        return submit(arguments, folder, sweep, overrides)
    from trainer.ranks.stop_signals import stop_on_signals

    with stop_on_signals() as stop:
        return train(arguments, sweep, overrides, folder, at, stop)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called(__file__),
        usage="%(prog)s SWEEP | --seeds A..B [options of this command] [options of train.py]",
        description="Train several runs of one config, one after the other, and compare them. The "
        "same command continues a sweep that was stopped or killed. Other options are those of "
        "convoy train, for every trial. SWEEP is a sweep file in W&B's format.",
        allow_abbrev=False,
    )
    add = parser.add_argument

    add("--seeds", metavar="A..B", help="a trial for each seed instead, such as 0..4 or 0,2,5")
    add("--trials", type=positive, default=10, metavar="N", help="of a random search (default: 10)")
    add("--sweep-seed", type=int, default=0, metavar="N", help="of its choices (default: 0)")
    add("--name", help="the folder of the sweep in OUTPUT_DIR (default: the name of its file)")
    add("--jobs", type=positive, default=1, metavar="N", help="trials side by side (default: 1)")
    add("--nproc", type=positive, default=1, metavar="N", help="ranks of each trial (default: 1)")
    add(
        "--halving",
        type=positive,
        metavar="EPOCHS",
        help="successive halving: look at all trials after this many epochs, and go on with the "
        "best third of the configs, and so on; the others stay where they are",
    )
    add("--factor", type=int, default=3, metavar="N", help="one in N goes on (default: 3)")
    add("--slurm", action="store_true", help="submit the trials as a Slurm array, --jobs at a time")
    add("--site", metavar="NAME", help="with --slurm: a site, as for launch/submit.py")
    add("--sites", type=Path, metavar="FILE", help="with --slurm: the file of sites")
    return parser


def plan(arguments: argparse.Namespace) -> Sweep:
    if (arguments.sweep is None) == (arguments.seeds is None):
        raise InputError("SWEEP", expected="either a sweep file or --seeds A..B")
    if arguments.factor < 2:
        raise InputError("--factor", given=arguments.factor, expected="2 or more")
    if arguments.slurm:
        from launch.submitting.submission import check_scripts

        check_scripts()
    if arguments.slurm and (arguments.halving or arguments.nproc > 1):
        raise InputError("--slurm", expected="neither --halving nor --nproc: see slurm/README.md")
    if arguments.seeds is not None:
        sweep = of_seeds(arguments.seeds)
    else:
        sweep = read_sweep(arguments.sweep, count=arguments.trials, seed=arguments.sweep_seed)
    if arguments.halving and len(sweep.configs) < 2:
        raise InputError("--halving", expected="several configs: the luckiest seed tells nothing")
    return sweep


def default_name(arguments: argparse.Namespace, base: RunConfig) -> str:
    return f"{base.name}_{'seeds' if arguments.sweep is None else arguments.sweep.stem}"


def check(sweep: Sweep, overrides: Sequence[str]) -> tuple[RunConfig, int]:
    """Refuse a config that any trial would refuse, before the first one is trained.

    Returns:
        The base config, and the epochs of the shortest trial.
    """
    base = load_config(overrides, prog=called(__file__), description="")
    epochs = []
    for trial in sweep.trials:
        given = [*overrides, *trial.arguments]
        try:
            config = load_config(given, prog=called(__file__), description="")
        except InputError as error:
            raise InputError(f"{trial.name}: {error}") from None
        epochs.append(config.train.epochs)
    return base, min(epochs)


def write_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Write the trials down, or find them there as they are.

    Raises:
        InputError: If another sweep lies there.
    """
    from trainer.checkpoints.atomic_files import write_output

    path = folder / TRIALS
    content = json.dumps(plan, indent=2) + "\n"
    if path.exists():
        if path.read_bytes() != content.encode():
            raise InputError(
                f"{folder} holds another sweep",
                expected="the same trials and options to continue it",
                remedy="Choose another --name.",
            )
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_output(path, content)
    except OSError as error:
        raise InputError(f"cannot write to {folder} ({error.strerror})") from None


def train(
    arguments: argparse.Namespace,
    sweep: Sweep,
    overrides: list[str],
    folder: Path,
    at: Sequence[int],
    stop: Any,
) -> int:
    """Train the trials on this machine; at epochs `at` the better ones go on."""
    from launch.sweeping.running import Halved, Runner, Stopped, halve
    from launch.sweeping.trial_progress import deciding_metric, read_recorded

    def metric() -> tuple[str, bool]:
        return deciding_metric(sweep, read_recorded(folder, sweep.trials))

    runner = Runner(
        folder, overrides, stop, say, metric, ranks=arguments.nproc, jobs=arguments.jobs
    )
    try:
        if at:
            found = halve(runner, sweep.configs, at=at, factor=arguments.factor)
        else:
            runner.run(sweep.trials)
            found = Halved(sweep.trials, {})
    except Stopped:
        say(f"Stopped on request; the same command continues the sweep in {folder}.")
        return EXIT_PREEMPTED
    if stopped := runner.unfinished(found.survivors):
        names = ", ".join(trial.name for trial in stopped)
        say(f"Something else stopped {names}; the same command continues the sweep in {folder}.")
        return EXIT_PREEMPTED
    return conclude(sweep, overrides, folder, found, runner.failures)


def conclude(
    sweep: Sweep, overrides: Sequence[str], folder: Path, found: Halved, failures: dict[str, str]
) -> int:
    """Compare the trials, write sweep.json, and print the command of the best config."""
    from launch.compare import show
    from launch.comparing.metric_names import is_chosen_on
    from launch.sweeping.conclusion import conclusion
    from launch.sweeping.trial_progress import deciding_metric, read_recorded
    from trainer.checkpoints.atomic_files import write_output

    runs = read_recorded(folder, sweep.trials)
    if not runs:
        raise InputError(f"no trial in {folder} has recorded anything: {failures}")
    metric, higher = deciding_metric(sweep, runs)
    comparison, result = conclusion(sweep, runs, metric, higher, found.left)
    show(comparison, [f"{name} failed: {why}" for name, why in failures.items()])
    write_output(folder / RESULT, json.dumps(result, indent=2) + "\n")
    if not is_chosen_on(metric):
        say(f"Chosen by {metric}, not on validation samples: better with --data.validation 0.1.")
    best = result["best"]
    if best and len(sweep.configs) > 1:
        chosen = next(t for t in sweep.trials if t.name == best["trials"][0])
        same = Trial(chosen.name, best["overrides"])
        command = shlex.join(["convoy", "train", *overrides, *same.arguments])
        spread = f" ± {best['std']:.2g}" if best["std"] is not None else ""
        names = ", ".join(best["trials"])
        say(f"Best: {names} ({metric} {best['mean']:.4g}{spread})\n    {command}")
    say(f"Written to {folder / RESULT}; look at it with: convoy compare {shlex.quote(str(folder))}")
    return EXIT_FAILED if failures else 0


def submit(arguments: argparse.Namespace, folder: Path, sweep: Sweep, options: list[str]) -> int:
    """Hand the trials to Slurm as an array, a line each; they are named as here."""
    from launch.submitting.sites import read_site
    from launch.submitting.submission import Submission
    from trainer.checkpoints.atomic_files import write_output

    name, site = read_site(arguments.site, arguments.sites)
    folder = folder.resolve()
    file, last = folder / "trials.txt", len(sweep.trials)
    lines = "".join(shlex.join(trial.arguments) + "\n" for trial in sweep.trials)
    submission = Submission(
        name=folder.name,
        site_name=name,
        site=site,
        arguments=[*options, f"--output_dir={folder}", "--name=trial"],
        runs=[folder / f"trial_{number}" for number in range(1, last + 1)],
        array=f"1-{last}" + (f"%{arguments.jobs}" if arguments.jobs > 1 else ""),
        lines=file,
    )
    write_output(file, lines)
    say(submission.tested())
    job = submission.submit()
    say(f"Submitted {last} trials: job {job} on site {name}; logs in {submission.logs}")
    return 0


def say(line: str) -> None:
    print(visible(line), flush=True)


if __name__ == "__main__":
    run_command(main)
