"""Find what is wrong before losing a day: machine, ranks, data, and a short try of a run.

    convoy doctor                                    # this machine
    convoy doctor --nproc 4                          # and the ranks
    convoy doctor --config mnist --optimizer.lr 1    # and this run

Exit status: 0 without problems, 1 with one, 2 for a bad config or input.
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

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.errors import InputError
from configs.load import load_config
from configs.schema import RunConfig
from launch.entry import called, is_main_process, run_command

HOW_ONLY = ("--parallel.", "--output_dir")
"""Config keys that say where to look rather than which run to look at."""


def main(argv: Sequence[str]) -> int:
    """Look, print what was found, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog=called(__file__),
        description=__doc__,
        epilog="All keys of a config may follow, as for convoy train. With --config, or any\n"
        "key but output_dir and parallel.*, the run is looked at too: on copies of its model,\n"
        "its directory is left alone.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings here too")
    parser.add_argument(
        "--steps", type=int, default=50, help="optimizer steps of each short training (default 50)"
    )
    options, keys = parser.parse_known_args(argv)
    if options.steps < 20:
        raise InputError(
            "--steps", given=options.steps, expected="20 or more", remedy="Fewer tell nothing."
        )
    config = load_config(keys, prog=called(__file__), description="Find what is wrong.")
    looks_at_run = any(key.startswith("--") and not key.startswith(HOW_ONLY) for key in keys)
    return examine(config, options.steps if looks_at_run else None, options.json)


def examine(config: RunConfig, steps: int | None, json_file: Path | None) -> int:
    """Look at the machine, the ranks if there are several, and the run if `steps` are given."""
    from launch.diagnosis.check_cluster import check_cluster
    from launch.diagnosis.check_machine import check_machine
    from launch.diagnosis.examine import check_run, gather_machines
    from launch.diagnosis.findings import exit_status, show, show_summary, write_findings
    from trainer.checkpoints.atomic_files import check_output
    from trainer.ranks.collectives import broadcast_object
    from trainer.ranks.runtime import choose_device, detect, process_group

    if json_file is not None and is_main_process():
        check_output("--json", json_file)
    runtime = choose_device(detect(os.environ), config.parallel)
    findings = []
    with process_group(runtime, config.parallel):
        ranks = runtime.local_world_size
        workers = config.data.workers
        found = check_machine(config.output_dir, workers=workers, ranks=ranks)
        findings += gather_machines(runtime, found)
        if runtime.world_size > 1:
            findings += check_cluster(config, runtime)
        if runtime.is_main:
            show(findings)
        if steps is not None:
            found = check_run(config, runtime, steps)
            findings += found
            if runtime.is_main:
                show(found)
        status = broadcast_object(runtime, exit_status(findings))
    if runtime.is_main:
        show_summary(findings)
        if json_file is not None:
            write_findings(json_file, findings)
    return status


if __name__ == "__main__":
    run_command(main)
