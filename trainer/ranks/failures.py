"""Failures of a run that need no traceback: one message says what happened."""

from __future__ import annotations

import os
import re
import sys
from typing import NoReturn

from trainer.ranks.launcher import guess


class RunFailed(RuntimeError):
    """The run cannot go on; what was saved before is good. A command exits with status 1."""


class Diverged(RunFailed):
    """The loss is not a finite number."""


class Drifted(RunFailed):
    """Ranks that should hold the same weights do not."""


class SaveFailed(RunFailed):
    """A checkpoint could not be written; earlier ones are as they were."""


def fails_everywhere(error: BaseException) -> bool:
    """Whether every rank raises it at the same place."""
    return isinstance(error, Diverged | Drifted) or getattr(error, "shared", False)


LOST_CONTACT = re.compile(
    r"connection (closed|reset|refused)|broken pipe|timed out|timeout|socket|NCCL|remote process",
    re.IGNORECASE,
)


def is_lost_contact(error: BaseException) -> bool:
    """Whether an error only says that another rank, which has the cause, is gone or silent."""
    import torch.distributed as dist

    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and bool(LOST_CONTACT.search(str(error)))


def leave_at_once(line: str, status: int) -> NoReturn:
    """Say why, and end the process from whatever thread: its main thread may wait for ever."""
    me = guess(os.environ)
    print(f"rank {me.rank}: {line}" if me.world_size > 1 else line, file=sys.stderr, flush=True)
    os._exit(status)
