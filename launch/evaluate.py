"""Evaluate a trained run: `python launch/evaluate.py runs/mnist --png`."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends what imports, without a traceback

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.visible import plain, visible
from launch.entry import run_command
from launch.run_arguments import (
    build_run_parser,
    load_run,
    not_negative,
    parse_run_arguments,
    split_overrides,
)

if TYPE_CHECKING:
    from data.datasets import Datasets
    from launch.using.assess import Assessment
    from launch.using.trained import Trained

GROUPS = ("data", "evaluate", "parallel", "precision")


def main(argv: Sequence[str]) -> int:
    """Evaluate, print the tables, and write evaluation.json and the pictures."""
    own, overrides = split_overrides(argv, GROUPS)
    arguments = parse_run_arguments(build_parser(), own)

    from data.datasets import load_datasets
    from launch.using.assess import assess, tells_classes_apart, to_record
    from trainer.checkpoints.atomic_files import check_output, make_folder, write_output

    trained = load_run(arguments, overrides)
    folder: Path = (arguments.output or trained.directory).expanduser()
    make_folder("--output", folder)
    check_output("--output", folder / "evaluation.json")
    data = load_datasets(trained.config.data, seed=trained.config.seed)
    if not tells_classes_apart(trained, data):
        return measure_task(trained, data, arguments.split, folder)
    found = assess(trained, data, split=arguments.split, num_mistakes=arguments.mistakes)
    files: dict[str, bytes] = draw(trained, found) if arguments.png else {}
    record = json.dumps(to_record(trained, found), indent=2, allow_nan=False) + "\n"
    for name, content in (files | {"evaluation.json": record.encode()}).items():
        write_output(folder / name, content)
    show(trained, found)
    print(visible(f"Written to {folder}: {', '.join(['evaluation.json', *files])}"))
    if arguments.wandb:
        from trainer.records.wandb_sink import show_evaluation

        names = ("accuracy", "loss", "macro_f1", "calibration_error")
        values = {name: float(getattr(found.metrics, name)) for name in names}
        pictures = {name.removesuffix(".png"): content for name, content in files.items()}
        wandb = trained.config.logging.wandb
        shown = show_evaluation(trained.directory, wandb, trained.step, values, pictures)
        print(f"Shown in W&B run {shown}")
    return 0


def measure_task(trained: Trained, data: Datasets, split: str, folder: Path) -> int:
    """What the task of the run measures, where there are no classes to tell apart."""
    from launch.using.measure import measure
    from trainer.checkpoints.atomic_files import write_output

    record = measure(trained, data, split)
    write_output(folder / "evaluation.json", (json.dumps(record, indent=2) + "\n").encode())
    print(visible(f"{trained.config.name}, {trained.checkpoint_name}, {split}:"))
    for name, value in record["metrics"].items():
        print(visible(f"  {name} {value:.6g}"))
    print(visible(f"Written to {folder}: evaluation.json"))
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = build_run_parser(
        "evaluate",
        "Evaluate a trained run on its test set, or with --data.root on another one of the same "
        "shape: metrics per class, calibration, confusion matrix and the most confident mistakes.",
        GROUPS,
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="Folder for evaluation.json and the pictures (default: the run directory).",
    )
    parser.add_argument(
        "--split",
        choices=("test", "validation", "train"),
        default="test",
        help="Which samples (default: test).",
    )
    parser.add_argument(
        "--png",
        action="store_true",
        help="Draw confusion_matrix.png and, of images, mistakes.png.",
    )
    parser.add_argument(
        "--wandb",
        action="store_true",
        help="Show metrics, and the pictures with --png, in the W&B run of this run.",
    )
    parser.add_argument(
        "--mistakes",
        type=not_negative,
        default=25,
        metavar="N",
        help="How many of the most confident mistakes to keep (default: 25).",
    )
    return parser


def draw(trained: Trained, found: Assessment) -> dict[str, bytes]:
    """The pictures by file name."""
    from launch.using.assessment_figures import confusion_picture, is_picture, mistakes_picture

    names, metrics = trained.facts.class_names, found.metrics
    title = f"{trained.config.name}, step {trained.step}, accuracy {metrics.accuracy:.2%}"
    files = {"confusion_matrix.png": confusion_picture(metrics.confusion, names, title)}
    if is_picture(trained.facts.input_shape):
        title = f"{trained.config.name}, step {trained.step}: most confident mistakes"
        files["mistakes.png"] = mistakes_picture(found.mistakes, found.inputs, names, title)
    return files


def show(trained: Trained, found: Assessment) -> None:
    """The metrics of each class, then those of all."""
    from rich.console import Console
    from rich.table import Table

    metrics, names = found.metrics, trained.facts.class_names
    average = " (moving average of the weights)" if trained.weights == "average" else ""
    title = plain(f"{trained.config.name}, {trained.checkpoint_name}{average}")
    table = Table(title=title, title_justify="left")
    for heading in ("class", "precision", "recall", "F1", "samples", "most often taken for"):
        right = heading not in ("class", "most often taken for")
        table.add_column(heading, justify="right" if right else "left")
    for number, name in enumerate(names):
        row = metrics.confusion[number].copy()
        row[number] = 0
        other = int(row.argmax())
        table.add_row(
            plain(name),
            f"{metrics.precision[number]:.4f}",
            f"{metrics.recall[number]:.4f}",
            f"{metrics.f1[number]:.4f}",
            f"{metrics.support[number]:,}",
            plain(f"{names[other]} ({row[other]})" if row[other] else ""),
        )
    console = Console()
    console.print(table)
    console.print(
        f"accuracy {metrics.accuracy:.2%} ({metrics.correct:,} of {metrics.count:,})   "
        f"loss {metrics.loss:.4f}   macro F1 {metrics.macro_f1:.4f}   "
        f"calibration error {metrics.calibration_error:.4f}",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    run_command(main)
