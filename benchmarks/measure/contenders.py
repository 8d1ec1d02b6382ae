"""Who takes part in the benchmark, and with which options."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from configs.errors import InputError, did_you_mean
from launch.entry import TRAIN, torchrun, train_command

PEERS = TRAIN.parents[1] / "benchmarks" / "peers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is the same for every contender."""

    epochs: int
    threads: int
    """CPU threads of a contender, shared by its ranks."""
    device: str = "cpu"
    max_steps: int | None = None

    def threads_per_rank(self, ranks: int) -> int:
        return max(self.threads // ranks, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to train the network."""

    name: str
    """What --only takes."""
    title: str
    program: str | None = None
    """File under benchmarks/peers; None: a run of launch/train.py."""
    config: str = "mnist"
    """Recipe of a run of launch/train.py."""
    options: tuple[str, ...] = ()
    ranks: int = 1
    torchrun: bool = False
    """Whether the program is started by torchrun."""
    against: str = "convoy"
    """The contender it is compared with."""
    needs: tuple[str, ...] = ()
    """Packages that the extra `benchmark` brings."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    """The devices it can train on."""

    @property
    def is_convoy(self) -> bool:
        return self.program is None

    def missing(self) -> str | None:
        """Why it cannot take part here, None if it can."""
        absent = [package for package in self.needs if find_spec(package) is None]
        if absent:
            return f"needs {', '.join(absent)}: pip install -e '.[benchmark]'"
        return None

    def command(self, settings: Settings, folder: Path) -> list[str]:
        """The command line; a run of Convoy goes to `folder`/run."""
        if self.program is None:
            options = [
                f"--config={self.config}",
                "--name=run",
                f"--output_dir={folder}",
                f"--train.epochs={settings.epochs}",
                f"--parallel.device={settings.device}",
                "--logging.progress=off",
                *self.options,
            ]
            if settings.max_steps is not None:
                options.append(f"--train.max_steps={settings.max_steps}")
            return train_command(self.ranks, *options)
        launcher = torchrun(self.ranks) if self.torchrun else [sys.executable]
        options = [
            f"--epochs={settings.epochs}",
            f"--threads={settings.threads}",
            f"--device={settings.device}",
            f"--ranks={self.ranks}",
            f"--started={time.time()}",
        ]
        if settings.max_steps is not None:
            options.append(f"--max-steps={settings.max_steps}")
        return [*launcher, str(PEERS / self.program), *options, *self.options]


CPU, GPU = ("cpu",), ("cuda",)

CONVOY = (
    Contender(name="convoy", title="Convoy"),
    Contender(
        name="convoy-tf32",
        title="Convoy, tf32",
        options=("--precision.matmul=high",),
        against="convoy-tf32",
        devices=GPU,
    ),
    Contender(
        name="convoy-plain",
        title="Convoy, steps not recorded",
        options=("--compile.capture=false",),
        devices=GPU,
    ),
    Contender(
        name="convoy-autograd", title="Convoy, autograd", options=("--compile.backward=autograd",)
    ),
    Contender(name="convoy-compile", title="Convoy, compiled", options=("--compile.enabled=true",)),
    Contender(name="convoy-bf16", title="Convoy, bf16", options=("--precision.dtype=bf16",)),
    Contender(
        name="convoy-exact",
        title="Convoy, exact reduction",
        options=("--parallel.reduction=exact",),
    ),
    Contender(
        name="convoy-2-ranks",
        title="Convoy, 2 ranks",
        ranks=2,
        against="convoy-2-ranks",
        devices=CPU,
    ),
)
"""Convoy's modes: real runs of configs/mnist.yaml with these options."""

PROGRAMS = (
    Contender(name="bare", title="bare torch loop", program="bare.py"),
    Contender(name="bare-passes", title="bare loop, passes by hand", program="bare_passes.py"),
    Contender(name="pytorch", title="PyTorch tutorial loop", program="pytorch.py"),
    Contender(
        name="accelerate",
        title="Accelerate",
        program="accelerate_loop.py",
        needs=("accelerate",),
    ),
    Contender(
        name="lightning", title="Lightning", program="lightning_loop.py", needs=("lightning",)
    ),
    Contender(name="jax-scan", title="JAX, epoch in a scan", program="jax_scan.py", needs=("jax",)),
    Contender(
        name="jax-scan-tf32",
        title="JAX, epoch in a scan, tf32",
        program="jax_scan.py",
        options=("--matmul=high",),
        against="convoy-tf32",
        needs=("jax",),
        devices=GPU,
    ),
    Contender(name="jax-step", title="JAX, jit per step", program="jax_step.py", needs=("jax",)),
    Contender(
        name="pure-python",
        title="pure python",
        program="pure_python.py",
        options=("--max-steps=4",),
        devices=CPU,
    ),
    Contender(
        name="pytorch-ddp",
        title="PyTorch DDP, 2 ranks",
        program="pytorch_ddp.py",
        ranks=2,
        torchrun=True,
        against="convoy-2-ranks",
        devices=CPU,
    ),
    Contender(
        name="lightning-ddp",
        title="Lightning DDP, 2 ranks",
        program="lightning_loop.py",
        ranks=2,
        against="convoy-2-ranks",
        needs=("lightning",),
        devices=CPU,
    ),
)
"""The peers, each a short program under benchmarks/peers."""

CONTENDERS = (*CONVOY, *PROGRAMS)

TEXT = (
    Contender(name="text", title="Convoy", config="gpt_chars", against="text"),
    Contender(
        name="text-compile",
        title="Convoy, compiled",
        config="gpt_chars",
        options=("--compile.enabled=true",),
        against="text",
    ),
    Contender(
        name="text-pytorch", title="plain PyTorch loop", program="text_pytorch.py", against="text"
    ),
    Contender(
        name="text-accelerate",
        title="Accelerate",
        program="text_accelerate.py",
        against="text",
        needs=("accelerate",),
    ),
    Contender(
        name="text-lightning",
        title="Lightning",
        program="text_lightning.py",
        against="text",
        needs=("lightning",),
    ),
)
"""Runs of configs/gpt_chars.yaml, and peers that train the same network on the same text."""


def choose(
    only: str | None, device: str = "cpu", among: Sequence[Contender] = CONTENDERS
) -> tuple[Contender, ...]:
    """All contenders on a device, or those whose names `only` lists, in the order of the table.

    Raises:
        InputError: For a name that nobody has.
    """
    if only is None:
        return tuple(contender for contender in among if device in contender.devices)
    wanted = [name.strip() for name in only.split(",")]
    known = [contender.name for contender in among]
    for name in wanted:
        if name not in known:
            raise InputError(
                "--only",
                given=name,
                expected=", ".join(known),
                remedy=did_you_mean(name, known),
            )
    return tuple(contender for contender in among if contender.name in wanted)


def named(name: str) -> Contender:
    return choose(name)[0]
