"""Where torch.compile keeps what it makes: beside the runs, so that a requeued job finds it.

Its own place is a folder for temporary files, which another node lacks and a reboot clears. (What
`torch.compiler.save_cache_artifacts` gives holds no kernels for CPUs, and misses what a run that is
killed has compiled since.) Within the folder torch finds code by a hash of the graph, its config
and its own version; what a kernel was built for, the processor above all, is in the folder's name.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from pathlib import Path

import torch

from trainer.backward.compile_cache import cache_folder
from trainer.ranks.processor import cpu_model

log = logging.getLogger("convoy")
VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
FOLDER = ".compiled"
"""With the user's number behind it: who shares a folder of runs does not share code."""
_chosen: set[str] = set()
"""Folders that a run of this process chose."""


def use_cache_beside(output_dir: str) -> Path:
    """Let torch.compile keep what it makes in OUTPUT_DIR/.compiled-UID/KIND, unless its variable
    is set. What lies there is executed: a folder that somebody else may write to is not used.

    Returns:
        The folder in use.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    given = os.environ.get(VARIABLE)
    if given is not None and given not in {default_cache_dir(), *_chosen}:
        return Path(given)
    own = Path(output_dir).expanduser().absolute() / f"{FOLDER}-{os.getuid()}"
    folder = own / kind_of_machine()
    try:
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if not (_is_ours(own) and _is_ours(folder)):
            log.warning(f"{folder} is not used: others may write to it, and it holds code")
            return cache_folder()
    except OSError as error:
        log.warning(f"{folder} cannot be written ({error.strerror}): what is compiled is not kept")
        return cache_folder()
    _chosen.add(str(folder))
    os.environ[VARIABLE] = str(folder)
    return folder


def kind_of_machine() -> str:
    """What compiled code depends on besides itself, as a name for a folder."""
    gpus = sorted({torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())})
    parts = [
        torch.__version__,
        platform.python_version(),
        platform.machine(),
        cpu_model(),
        torch.backends.cpu.get_cpu_capability(),
        *gpus,
    ]
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
    return f"torch-{torch.__version__}-{digest[:12]}"


def _is_ours(folder: Path) -> bool:
    found = folder.lstat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022
