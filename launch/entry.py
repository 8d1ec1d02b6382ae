"""What every command shares: the log, and exit statuses instead of tracebacks for bad input."""

from __future__ import annotations

import atexit
import errno
import io
import logging
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from configs.errors import InputError, first_line
from configs.own_modules import PREFIX
from configs.visible import LogLines, visible
from trainer.ranks.launcher import guess
from trainer.ranks.stop_signals import stop_with_parent
from trainer.records.quiet_stream import hush

LAUNCHER = os.getppid()
"""Asked for at once: it may die while packages are imported."""
TRAIN = Path(__file__).resolve().parent / "train.py"
STATUS_FILE = "CONVOY_STATUS_FILE"
"""Names the file in which rank 0 leaves its exit status for whoever started the ranks."""
REQUIRED = ("torch", "numpy", "jsonargparse", "yaml", "rich", "safetensors")
RANK_0_SECONDS = 10.0
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""How a disk refuses more."""
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2


def train_command(ranks: int, *options: str, program: str = "train") -> list[str]:
    """The command line of a run: torchrun for several ranks, plain python for one."""
    launcher = [*torchrun(ranks), "--no-python", sys.executable, "-u"]
    python = launcher if ranks > 1 else [sys.executable]
    return [*python, *program_of(program), *options]


def program_of(name: str) -> list[str]:
    """What Python is called with to run a file of this folder, such as `train`.

    Where it is installed neither its folder nor the working directory may come first on sys.path.
    """
    if PREFIX:
        return ["-P", "-m", f"{PREFIX}launch.{name}"]
    return [str(TRAIN.parent.joinpath(*name.split(".")).with_suffix(".py"))]


def called(file: str) -> str:
    """A command as it was called: `convoy train`, or else `launch/train.py`."""
    return sys.argv[0] if sys.argv[0].startswith("convoy ") else f"launch/{Path(file).name}"


def torchrun(ranks: int) -> list[str]:
    """The beginning of a command line for ranks on this machine, before the program.

    Without a folder for logs torchrun makes one in /tmp, puts error files there, and leaves it.
    """
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*run, f"--nproc_per_node={ranks}", f"--log-dir={os.devnull}"]


def rank() -> int:
    """Rank by the launcher's variables; known before anything heavy is imported."""
    return guess(os.environ).rank


def num_ranks() -> int:
    """World size by the launcher's variables."""
    return guess(os.environ).world_size


def is_main_process() -> bool:
    """Whether this is rank 0 by the launcher's variables."""
    return guess(os.environ).is_main


def run_command(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Call a command with its arguments and leave with its status.

    What all ranks refuse or fail at alike is printed once, by rank 0. An error of one rank is
    shown once with its traceback, and a rank that only lost contact with it says so in one line.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on it is caught
    if num_ranks() > 1:
        stop_with_parent(LAUNCHER)
    status_file = os.environ.pop(STATUS_FILE, None)
    os.umask(os.umask(0o077) | 0o002)  # nobody else may write what this one reads later
    speak_safely()
    level = logging.WARNING if is_main_process() else logging.ERROR
    logging.basicConfig(handlers=[LogLines()], format="%(message)s", level=level)
    if is_main_process():
        logging.getLogger("convoy").setLevel(logging.INFO)  # and not what libraries tell
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()  # what is refused only at the end would be a traceback
    except InputError as error:
        status = _say(error, EXIT_BAD_INPUT, shared=error.shared)
    except BrokenPipeError:  # the reader has seen enough
        hush(sys.stdout)
        status = 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # a path as it was given; whatever looked for it
            refused = (
                f"{visible(str(error.filename))}: expected a path that may exist ({error.strerror})"
            )
            status = _say(refused, EXIT_BAD_INPUT, shared=True)
        else:
            status = _full(error) if error.errno in FULL else _report(error)
    except KeyboardInterrupt:  # where nothing is there yet to be saved
        status = _say("interrupted", 128 + signal.SIGINT, shared=True)
    except ModuleNotFoundError as error:
        if error.name in REQUIRED:
            remedy = "run `make train`, or `pip install -c constraints.txt -e .`"
            status = _say(f"{error.name} is not installed for {sys.executable}: {remedy}", 2)
        else:
            status = _report(error)
    except Exception as error:
        status = _report(error)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the status is decided: let it through
    if status_file is not None and os.getppid() != LAUNCHER:  # killed: it cannot clear up
        shutil.rmtree(Path(status_file).parent, ignore_errors=True)
    elif status_file is not None and is_main_process():
        Path(status_file).write_text(str(status))
    if num_ranks() > 1:
        _leave(status)
    sys.exit(status)


def _full(error: OSError) -> int:
    """What could not be printed or written is missing, and a command that lost it has failed."""
    hush(sys.stdout)
    where = f" to {error.filename}" if error.filename else ""
    return _say(f"the output cannot be written{where} ({error.strerror})", EXIT_FAILED)


def speak_safely() -> None:
    """A terminal that lacks a letter gets a mark in its place, and one that is closed nothing."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _leave(status: int) -> NoReturn:
    """Exit without tearing the interpreter down.

    Threads of gloo that still run while it is torn down now and then abort the process ("terminate
    called without an active exception"), and a rank that had finished would count as failed.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _say(message: object, status: int, *, shared: bool = False) -> int:
    """Print a message once: another rank speaks only if rank 0 had nothing to say.

    A launcher ends all ranks when the first one leaves, so the others let rank 0 go first; usually
    they are ended while they wait. What is `shared` is known to be said by rank 0.
    """
    if not is_main_process():
        time.sleep(RANK_0_SECONDS)
        if shared:
            return status
    where = "" if is_main_process() else f"rank {rank()}: "
    print(f"error: {where}{message}", file=sys.stderr, flush=True)
    return status


def _report(error: Exception) -> int:
    """Say why a run failed, in the words of the rank where it happened."""
    from trainer.ranks.failures import RunFailed, is_lost_contact

    if isinstance(error, RunFailed):
        return _say(f"{error}.", EXIT_FAILED, shared=True)
    if num_ranks() > 1 and is_lost_contact(error):
        reason = first_line(error)
        line = f"rank {rank()}: another rank is gone or silent ({reason})"
        print(line, file=sys.stderr, flush=True)
    elif os.environ.get("TORCHELASTIC_ERROR_FILE"):
        # torchrun prints the error file of the rank that failed first: printing here as well
        # would show the traceback twice.
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
    else:
        text = visible("".join(traceback.format_exception(error)))
        print(f"rank {rank()} failed:\n{text}", file=sys.stderr, flush=True)
    return EXIT_FAILED
