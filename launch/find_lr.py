"""Find a learning rate: `torchrun --nproc_per_node=4 launch/find_lr.py --config mnist`.

Takes every key of a run, and a few of its own: see `--help`.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends what imports, without a traceback

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.errors import InputError
from configs.imports import MissingExtra
from configs.load import load_config
from configs.visible import visible
from launch.entry import called, run_command

if TYPE_CHECKING:
    from configs.schema import RunConfig
    from launch.finding.loss_curve import LossCurve, Suggestion
    from launch.finding.range_test import FinderOptions

OWN_HELP = {
    "min_lr": "learning rate of the first step (default: 1e-7)",
    "max_lr": "learning rate of the last step (default: 1)",
    "steps": "optimizer steps, or `epoch` (default: 100)",
    "diverged": "stop when the smoothed loss is this many times its best (default: 4)",
    "smoothing": "time constant of the moving average, as a fraction of the steps (default: 0.05)",
}


def main(argv: Sequence[str]) -> int:
    """Parse, run the range test, show and write what it found."""
    own = own_parser()
    if {"-h", "--help"} & set(argv):
        own.print_help()
    given, rest = parse_own(own, argv)
    config = load_config(
        rest, prog=called(__file__), description="The keys of a run, as for convoy train."
    )
    runs = Path(config.output_dir).expanduser()
    if "output" not in given:
        from trainer.checkpoints.atomic_files import make_folder

        make_folder("output_dir", runs)
    output = Path(given.pop("output", runs / f"{config.name}_lr_finder.png")).expanduser()
    if output.suffix != ".png":
        raise InputError("--output", given=str(output), expected="the name of a picture, FILE.png")
    return find(config, read_options(given), output)


def own_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called(__file__),
        usage="%(prog)s [--config FILE] [--lr_finder.KEY VALUE] [--output FILE.png] [--KEY VALUE]",
        description="Learning-rate range test. It starts from the initial weights of the config, "
        "and neither reads nor writes a run directory.",
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
    )
    for name, text in OWN_HELP.items():
        parser.add_argument(f"--lr_finder.{name}", dest=name, metavar="VALUE", help=text)
    parser.add_argument(
        "--output",
        metavar="FILE.png",
        help="picture of the curve; FILE.json beside it holds the numbers (default: "
        "OUTPUT_DIR/NAME_lr_finder.png)",
    )
    return parser


def parse_own(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """This command's own options, and the rest of the line: the config's."""
    try:
        known, rest = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise InputError(str(error), remedy=f"`{called(__file__)} --help` lists them.") from None
    return {name: value for name, value in vars(known).items() if value is not None}, rest


def read_options(given: dict[str, str]) -> FinderOptions:
    """
    Raises:
        InputError: For a value that is no number, or out of range.
    """
    from launch.finding.range_test import FinderOptions

    values: dict[str, float | str] = {}
    for name, text in given.items():
        try:
            if name == "steps":
                values[name] = text if text == "epoch" else int(text)
            else:
                values[name] = float(text)
        except ValueError:
            number = "a whole number, or epoch" if name == "steps" else "a number"
            raise InputError(f"lr_finder.{name}", given=text, expected=number) from None
    return FinderOptions(**values)  # type: ignore[arg-type]


def find(config: RunConfig, options: FinderOptions, output: Path) -> int:
    """Run the test on all ranks; rank 0 shows what it found."""
    from launch.finding.curve_files import write_curve
    from launch.finding.loss_curve import suggest
    from launch.finding.range_test import range_test
    from trainer.build import assemble
    from trainer.checkpoints.atomic_files import check_output
    from trainer.ranks.runtime import choose_device, detect, process_group

    for path in (output, output.with_suffix(".json")):
        check_output("--output", path)
    runtime = choose_device(detect(os.environ), config.parallel)
    with process_group(runtime, config.parallel):
        curve = range_test(assemble(config, runtime), options)
    suggestion = suggest(curve)
    if runtime.is_main:
        write_curve(output.with_suffix(".json"), curve, suggestion)
        show(curve, suggestion, draw(curve, suggestion, output))
    return 0 if suggestion is not None else 1


def draw(curve: LossCurve, suggestion: Suggestion | None, output: Path) -> str:
    """Draw the picture if matplotlib is there; returns what was written, in words."""
    from launch.finding.curve_files import draw_curve

    numbers = output.with_suffix(".json")
    try:
        draw_curve(output, curve, suggestion)
    except MissingExtra as missing:
        return f"Curve in {numbers}; no picture: {missing}"
    return f"Curve in {output} and {numbers}"


def show(curve: LossCurve, suggestion: Suggestion | None, written: str) -> None:
    """What was found, and the flag to paste."""
    if not curve.learning_rates:
        print(f"No step was taken: {curve.stopped}.")
    else:
        first, last = curve.learning_rates[0], curve.learning_rates[-1]
        print(f"{len(curve.losses)} steps from {first:.1e} to {last:.1e}: {curve.stopped}.")
    print(visible(written))
    if suggestion is None:
        remedy = "Try a larger --lr_finder.max_lr or more --lr_finder.steps"
        if curve.bad_sample is not None:
            remedy = "Repair or drop it in the data set"
        elif curve.broken_off:
            remedy = "Try a smaller --lr_finder.min_lr or more --lr_finder.steps"
        print(
            f"error: no suggestion, because the loss did not fall: {curve.stopped}. {remedy}, or "
            "look at the data and the model.",
            file=sys.stderr,
        )
        return
    print(f"Steepest descent at {suggestion.steepest:.1e}, minimum / 10 at {suggestion.tenth:.1e}")
    print(f"Suggestion: --optimizer.lr {suggestion.steepest:.1e}")


if __name__ == "__main__":
    run_command(main)
