"""Importing a module changes nothing but what is imported."""

from __future__ import annotations

import json
import sys

import pytest

from tests.support.processes import start, wait
from tests.support.source_code import LIBRARIES, module_name, sources

pytestmark = pytest.mark.process

# Watches what importing the modules does to a process that has already imported the libraries.
SIDE_EFFECTS = """
import importlib, json, multiprocessing, os, random, signal, sys, threading
import numpy, torch, torch.distributed

probes = []
for name in ("is_available", "device_count", "init", "_lazy_init", "current_device"):
    def probe(*args, _name=name, _real=getattr(torch.cuda, name), **kwargs):
        probes.append(_name)
        return _real(*args, **kwargs)
    setattr(torch.cuda, name, probe)

def state():
    return {
        "signal handlers": [str(signal.getsignal(n)) for n in sorted(signal.valid_signals())],
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "processes": len(multiprocessing.active_children()),
        "process group": torch.distributed.is_initialized(),
        "CUDA": [torch.cuda.is_initialized(), *probes],
        "environment": sorted(os.environ.items()),
        "working directory": os.getcwd(),
        "sys.path": list(sys.path),
        "sys.excepthook": str(sys.excepthook),
        "torch settings": [
            torch.get_num_threads(), torch.get_num_interop_threads(), torch.is_grad_enabled(),
            torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark, str(torch.get_default_dtype()),
        ],
        "random numbers": [
            torch.get_rng_state().tolist(), str(random.getstate()),
            numpy.random.get_state()[1].tolist(),
        ],
    }

before = state()
for module in sys.argv[1:]:
    importlib.import_module(module)
after = state()
print(json.dumps([name for name in before if before[name] != after[name]]))
"""


def side_effects(modules: list[str], script: str = SIDE_EFFECTS) -> list[str]:
    finished = wait(start([sys.executable, "-c", script, *modules]))
    assert finished.status == 0, finished.output
    changed: list[str] = json.loads(finished.stdout)
    return changed


def test_importing_has_no_side_effects() -> None:
    """Law: no signal handler, thread, process group, device probe or setting comes of an import."""
    needs_triton = {"trainer.backward.explicit.fused_head"}  # which comes with torch for GPUs only
    modules = {module_name(path) for path in sources(*LIBRARIES)} - needs_triton
    assert side_effects(sorted(modules)) == []


def test_side_effects_would_be_seen() -> None:
    """The test above can fail: a script that does what it forbids is caught."""
    guilty = (
        "signal.signal(signal.SIGTERM, lambda *_: None); torch.cuda.is_available(); "
        "threading.Thread(target=threading.Event().wait, daemon=True).start(); "
        "os.environ['LEAKED'] = '1'; torch.set_num_threads(torch.get_num_threads() + 1)"
    )
    script = SIDE_EFFECTS.replace("after = state()", f"{guilty}\nafter = state()")
    caught = side_effects([], script)
    expected = {"signal handlers", "threads", "CUDA", "environment", "torch settings"}
    assert set(caught) == expected
