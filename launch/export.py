"""Export a trained run: `python launch/export.py runs/mnist --format onnx`."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends what imports, without a traceback

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.visible import visible
from launch.entry import run_command
from launch.run_arguments import build_run_parser, load_run, parse_run_arguments, split_overrides

SUFFIXES = {"safetensors": ".safetensors", "torch_export": ".pt2", "onnx": ".onnx"}


def main(argv: Sequence[str]) -> int:
    """Export, check, and only then write the file."""
    own, _ = split_overrides(argv, ())
    arguments = parse_run_arguments(build_parser(), own)

    from launch.using.exporting import export
    from trainer.checkpoints.atomic_files import check_output, write_output

    if arguments.output is not None:
        check_output("--output", arguments.output)
    # A program is made on the CPU, whatever it will run on.
    trained = load_run(arguments, ["--parallel.device=cpu"])
    output: Path = arguments.output or trained.directory / f"model{SUFFIXES[arguments.format]}"
    check_output("--output", output)
    exported = export(
        trained, arguments.format, include_normalization=arguments.include_normalization
    )
    write_output(output, exported.content)
    what = (
        "weights" if arguments.format == "safetensors" else f"{exported.takes} -> {exported.gives}"
    )
    line = (
        f"{output}: {what}, {trained.checkpoint_name}, {len(exported.content):,} bytes; read back, "
        f"differs from the model by at most {exported.difference:.2g}"
    )
    print(visible(line))
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = build_run_parser(
        "export",
        "Export a trained run for other programs. The file is compared with the model before it is "
        "written; it holds the config, the input shape, the normalisation and the classes too.",
        (),
    )
    parser.add_argument(
        "--format",
        choices=SUFFIXES,
        required=True,
        help="safetensors: the weights. torch_export: a program for torch.export.load. onnx: a "
        "program for onnxruntime and others.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="File to write (default: model.safetensors, model.pt2 or model.onnx in the run "
        "directory).",
    )
    parser.add_argument(
        "--include-normalization",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Programs take inputs as they are stored, such as uint8 images (the default), or "
        "float32 that the caller has normalised.",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
