"""Classify images with a trained run, `python launch/predict.py runs/mnist digit.png`, or go on
with a text: `python launch/predict.py runs/gpt_chars --prompt "She was"`."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends what imports, without a traceback

import argparse
import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.errors import InputError
from configs.visible import visible
from launch.entry import run_command
from launch.run_arguments import (
    build_run_parser,
    load_run,
    parse_run_arguments,
    positive,
    split_overrides,
)

if TYPE_CHECKING:
    from torch import Tensor

    from data.facts import InputFacts
    from data.formats.images import Images
    from launch.using.trained import Trained

GROUPS = ("parallel", "precision")
INPUT_FORMATS = ("auto", "idx", "npy", "png")
FORMATS = ("csv", "json", "jsonl")
STDIN = "-"
log = logging.getLogger("convoy")


def main(argv: Sequence[str]) -> int:
    """Check every input, then write one row for each image, or text."""
    own, overrides = split_overrides(argv, GROUPS)
    text = any(word.partition("=")[0] == "--prompt" for word in own)
    arguments = parse_run_arguments(build_parser(text=text), own)
    if text:
        return continue_text(arguments, overrides)
    kind = output_format(arguments)

    from data.formats.reading import Reading
    from launch.using.rows import show_rows, text_file, write_rows
    from launch.using.trained import require_classes
    from trainer.checkpoints.atomic_files import check_output

    if arguments.output is not None:
        check_output("--output", arguments.output)
    trained = load_run(arguments, overrides)
    if trained.facts.vocabulary is not None:
        raise InputError(
            "INPUT", given=arguments.inputs, expected="--prompt TEXT for a run on tokens"
        )
    require_classes(trained.config)
    trained.facts.require_one_input("predict")
    reading = Reading(facts=trained.facts, resize=arguments.resize, invert=arguments.invert)
    size = arguments.batch_size or trained.config.evaluate.batch_size
    with open_inputs(arguments, reading) as inputs:
        rows = predict(trained, inputs, size)
        if arguments.output is not None:
            with text_file(arguments.output) as file:
                write_rows(file, rows, kind, trained.facts.class_names)
            return 0
        try:
            if arguments.kind is None and sys.stdout.isatty():
                show_rows(rows, trained.facts.class_names)
            else:
                write_rows(sys.stdout, rows, kind, trained.facts.class_names)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def continue_text(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Write a prompt and what follows it."""
    from launch.using.generating import require_text, write_text
    from launch.using.rows import text_file
    from launch.using.text_options import read_prompt, sampling
    from trainer.checkpoints.atomic_files import check_output

    how = sampling(arguments)
    if arguments.output is not None:
        check_output("--output", arguments.output)
    trained = load_run(arguments, overrides)
    require_text(trained)
    pieces = write_text(trained, read_prompt(arguments.prompt), how)
    if arguments.output is not None:
        with text_file(arguments.output) as file:
            file.writelines([*pieces, "\n"])
        return 0
    show = visible if sys.stdout.isatty() else str
    for piece in pieces:
        print(show(piece), end="", flush=True)
    print()
    return 0


def build_parser(*, text: bool = False) -> argparse.ArgumentParser:
    """The options; a `text` has no other inputs than its prompt."""
    from launch.using.text_options import add_options

    parser = build_run_parser(
        "predict",
        "Classify images with a trained run: one row per image with its class, the name of the "
        "class and the probability of every class. Or go on with a text.",
        GROUPS,
    )
    if not text:
        parser.add_argument(
            "inputs",
            nargs="+",
            metavar="INPUT",
            help="IDX (plain or .gz), NPY or picture files; - reads one from standard input.",
        )
    parser.add_argument(
        "--format",
        choices=INPUT_FORMATS,
        default="auto",
        help="Format of the inputs (default: told by their first bytes); png stands for every kind "
        "of picture.",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="Write to this file instead of printing."
    )
    parser.add_argument(
        "--as",
        dest="kind",
        choices=FORMATS,
        help="Format of the rows (default: by the ending of --output; else a short table on a "
        "terminal, and csv in a pipe).",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="Images that go through the model together (default: the run's evaluate.batch_size).",
    )
    parser.add_argument(
        "--resize",
        action="store_true",
        help="Bring images of another size to the model's (bilinear, aspect ratio not kept), where "
        "training did nothing of the kind; without it they are refused. Pictures of a run on "
        "pictures of any size are always treated as they were there.",
    )
    parser.add_argument(
        "--invert",
        action="store_true",
        help="Turn dark drawings on white into light ones on black, as in MNIST (255 - value).",
    )
    add_options(parser)
    return parser


def output_format(arguments: argparse.Namespace) -> str:
    """csv, json or jsonl."""
    if arguments.kind is not None:
        return str(arguments.kind)
    ending = arguments.output.suffix.removeprefix(".") if arguments.output is not None else "csv"
    if ending not in FORMATS:
        raise InputError(
            "--output",
            given=str(arguments.output),
            expected=f"a name that ends in .{', .'.join(FORMATS)}",
            remedy="Or say the format with --as.",
        )
    return str(ending)


@contextlib.contextmanager
def open_inputs(arguments: argparse.Namespace, reading: Any) -> Iterator[list[Images]]:
    """All inputs, opened and checked; standard input is kept in a file while it is needed."""
    from data.formats.images import open_images

    names: list[str] = arguments.inputs
    if names.count(STDIN) > 1:
        raise InputError("INPUT", given="- twice", expected="standard input once")
    with contextlib.ExitStack() as stack:
        opened = []
        for name in names:
            path = Path(name).expanduser()
            if name == STDIN:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="predict-"))
                path = Path(folder) / "stdin"
                with path.open("wb") as file:
                    shutil.copyfileobj(sys.stdin.buffer, file)
            opened.append(open_images(path, reading, format=arguments.format, name=name))
        yield opened


def predict(trained: Trained, inputs: list[Images], batch_size: int) -> Iterator[dict[str, Any]]:
    """A row for each image, in the order of the inputs.

    Raises:
        InputError: If an input turns out to be damaged, or an output is not finite.
    """
    from data.formats.images import batches
    from launch.using.trained import not_finite

    names, doubtful, count = trained.facts.class_names, 0, 0
    for origins, images in batches(inputs, batch_size):
        doubtful += look_inverted(images, trained.facts)
        count += len(images)
        logits = trained.logits(images)
        classes = logits.argmax(1).tolist()
        # Float64 so that writing them down loses nothing: softmax of the logits as they are.
        probabilities = logits.double().softmax(1).tolist()
        entries = zip(origins, classes, probabilities, strict=True)
        for place, ((name, index), chosen, row) in enumerate(entries):
            if not sum(row) > 0.5:  # it is 1, or not a number
                raise not_finite(f"{name}, image {index}", images[place], logits[place])
            yield {
                "input": name,
                "index": index,
                "class": chosen,
                "name": names[chosen],
                "probability": row[chosen],
                "probabilities": row,
            }
    if doubtful:
        log.warning(
            f"{doubtful} of {count} images are light where those of training were dark, or the "
            "other way round: --invert may be what is missing"
        )


def look_inverted(images: Tensor, facts: InputFacts) -> int:
    """How many grey pictures `(n, 1, H, W)` have the mean of the training data's negatives."""
    if facts.dtype != "uint8" or facts.input_shape[:1] != (1,) or facts.scale != 255:
        return 0
    means = images.flatten(1).double().mean(1) / facts.scale
    away, inverted = (means - facts.mean[0]).abs(), (1 - means - facts.mean[0]).abs()
    return int(((away > 0.4) & (inverted < away / 2)).sum())


if __name__ == "__main__":
    run_command(main)
