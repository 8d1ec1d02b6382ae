"""How and where a run is executed: compiling, ranks and devices, profiling, trying it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from configs.errors import expect
from configs.fields import execution


@dataclass(frozen=True, kw_only=True)
class CompileConfig:
    enabled: bool | Literal["auto"] = "auto"
    """torch.compile the model; auto: on a GPU yes, unless passes are written out; on a CPU no."""
    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = (
        "default"
    )
    """Mode of torch.compile."""
    regional: bool | Literal["auto"] = "auto"
    """Compile each block of the network by itself, and of equal blocks only one; auto: under fsdp,
    and for a network with 8 equal blocks or more."""
    fullgraph: bool = False
    """Refuse a model that torch.compile cannot take whole, with the line that breaks its graph."""
    cache: bool = True
    """Keep what was compiled beside the runs, for the next start; false: where torch keeps it."""
    channels_last: bool | Literal["auto"] = "auto"
    """Keep the weights of convolutions with their channels last, as tensor cores take them; auto:
    in bf16 and fp16 on a GPU."""
    backward: Literal["auto", "autograd", "explicit"] = "auto"
    """Who computes gradients; explicit: passes written out, for networks of Linear, ReLU and
    Dropout; auto: explicit where that is possible."""
    capture: bool | Literal["auto"] = "auto"
    """Record whole steps as CUDA graphs, many in one launch, on GPUs that hold the data; auto:
    where that is possible; a recording of a network of your own is tried first."""


OTHER_DEVICES = ("mps", "xpu")
"""Neither CPUs nor CUDA GPUs: what only Accelerate's engine is run on."""
NATIVE_ONLY = ("reduction", "compression")
"""Keys of `parallel` that only the native engine obeys."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    engine: Literal["native", "accelerate"] = execution("native")
    """Who runs the model and reduces its gradients; accelerate: Hugging Face Accelerate."""
    strategy: Literal["ddp", "fsdp"] = execution("ddp")
    """How the model is distributed among ranks; ddp: each holds all of it. fsdp: each holds a part
    of weights, gradients and optimizer state, and fetches a block when it computes with it."""
    shard_size: int | None = execution(None)
    """Under fsdp, ranks that hold one copy of the model together, such as those of a node; groups
    of them hold copies (HSDP). null: all of them hold one."""
    reshard_after_forward: bool = execution(True)
    """Under fsdp, free a block after its forward pass and fetch it again for the backward pass."""
    cpu_offload: bool = execution(False)
    """Under fsdp, keep weights, gradients and optimizer state in host memory."""
    activation_checkpointing: bool = execution(False)
    """Keep only the inputs of each block for the backward pass, and compute the rest again."""
    sync_batch_norm: bool = False
    """Batch statistics over the samples of all ranks instead of each rank's own; on GPUs."""
    reduction: Literal["fast", "exact"] = "fast"
    """fast: all-reduce. exact: a fixed pairwise tree, bit-identical on 1, 2, 4, ... ranks."""
    compression: Literal["none", "bf16", "fp16", "powersgd"] = "none"
    """What gradients travel as; powersgd: low-rank matrices, with the error fed back."""
    powersgd_rank: int = 1
    """Rank of the matrices that PowerSGD sends."""
    powersgd_start_step: int = 1000
    """Steps with uncompressed gradients before PowerSGD begins."""
    shards: int = 8
    """Fixed shards of the global batch under exact reduction, a power of two."""
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = execution("auto")
    """Where to train; auto: a GPU if there is one. mps (Apple) and xpu (Intel): one rank, under
    parallel.engine=accelerate, which also takes them by itself."""
    backend: Literal["auto", "gloo", "nccl"] = execution("auto")
    """Communication between ranks; auto: nccl on GPUs, gloo on CPUs."""
    threads: int | None = execution(None)
    """CPU threads per rank; default: the launcher's, or torch's within this rank's share of cores
    and quota; 1 under exact reduction."""
    find_unused_parameters: bool | Literal["auto"] = execution("auto")
    """Whether ranks tell each other in every step which parameters have a gradient, for a model
    that does not use all of them in all steps; auto: as a trial before the first step shows."""
    bucket_mb: float | Literal["auto"] = execution("auto")
    """MiB of gradient that travel in one message while lower layers' gradients are computed; auto:
    from the latency and the bandwidth between the ranks, as long as that moves no bits."""
    drift_every_steps: int | None = execution(None)
    """Compare a digest of the weights of all ranks every this many steps; null: never."""
    init_timeout_seconds: float = execution(600.0)
    """How long ranks wait for each other to appear and to load their data."""
    timeout_seconds: float = execution(120.0)
    """How long a rank waits for the others inside training before it gives up."""

    def __post_init__(self) -> None:
        self._check_strategy()
        shards = self.shards
        expect(
            self,
            "parallel.shards",
            shards >= 1 and shards & (shards - 1) == 0,
            "a power of two: 1, 2, 4, 8, ...",
        )
        expect(
            self,
            "parallel.threads",
            self.threads is None or self.threads >= 1,
            "1 or more, or null",
        )
        every = self.drift_every_steps
        expect(
            self, "parallel.drift_every_steps", every is None or every >= 1, "1 or more, or null"
        )
        mb = self.bucket_mb
        expect(
            self, "parallel.bucket_mb", mb == "auto" or 0 < mb < float("inf"), "above 0, or auto"
        )
        for key in ("init_timeout_seconds", "timeout_seconds"):
            value = getattr(self, key)
            expect(self, f"parallel.{key}", 0 < value < float("inf"), "a number above 0")

    def _check_strategy(self) -> None:
        """What cannot be had together."""
        exact, fsdp = self.reduction == "exact", self.strategy == "fsdp"
        expect(
            self,
            "parallel.strategy",
            not (exact and fsdp),
            "ddp with parallel.reduction=exact",
            "A reduce-scatter adds in an order that depends on the number of ranks.",
        )
        expect(
            self,
            "parallel.drift_every_steps",
            not fsdp or self.drift_every_steps is None,
            "null with parallel.strategy=fsdp",
            "No two ranks hold the same weights: there is nothing to compare.",
        )
        expect(
            self,
            "parallel.compression",
            self.compression == "none" or not exact,
            "none with parallel.reduction=exact",
        )
        expect(
            self,
            "parallel.compression",
            self.compression in ("none", "bf16") or not fsdp,
            "none or bf16 with parallel.strategy=fsdp",
        )
        expect(
            self,
            "parallel.sync_batch_norm",
            not (exact and self.sync_batch_norm),
            "false with parallel.reduction=exact",
            "There every shard has statistics of its own, wherever it is computed.",
        )
        size = self.shard_size
        expect(self, "parallel.shard_size", size is None or size >= 2, "2 or more, or null")
        expect(self, "parallel.powersgd_rank", self.powersgd_rank >= 1, "1 or more")
        expect(self, "parallel.powersgd_start_step", self.powersgd_start_step >= 2, "2 or more")
        expect(
            self,
            "parallel.device",
            self.device not in OTHER_DEVICES or self.engine == "accelerate",
            "auto, cpu or cuda with parallel.engine=native",
            "Use --parallel.engine accelerate: other devices are left to it.",
        )
        for key in NATIVE_ONLY if self.engine == "accelerate" else ():
            default = type(self).__dataclass_fields__[key].default
            expect(
                self,
                f"parallel.{key}",
                getattr(self, key) == default,
                f"{default} with parallel.engine=accelerate",
                "Use --parallel.engine native.",
            )


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    enabled: bool = False
    """Profile some warm steps: RUN/profile/trace.json.gz and summary.md; `--profile` for short."""
    warmup_steps: int = 50
    """Steps before the profiled ones; the second half of them is timed without the profiler."""
    steps: int = 20
    """How many steps to profile."""

    def __post_init__(self) -> None:
        expect(self, "profile.warmup_steps", self.warmup_steps >= 0, "0 or more")
        expect(self, "profile.steps", self.steps >= 1, "1 or more")


@dataclass(frozen=True, kw_only=True)
class DryRunConfig:
    world_size: int | None = None
    """Check the run as this many ranks would run it, print a report and start nothing."""

    def __post_init__(self) -> None:
        expect(
            self,
            "dry_run.world_size",
            self.world_size is None or self.world_size >= 1,
            "1 or more, or null",
        )
