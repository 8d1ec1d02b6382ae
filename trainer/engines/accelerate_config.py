"""Whether an accelerate config and the run's own config say the same.

`accelerate launch` passes its command line and its config file on as variables. What changes the
arithmetic or the memory of a run is the run's config (docs/accelerate.md): a variable that says
otherwise is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from configs.errors import InputError
from configs.imports import import_extra
from configs.schema import RunConfig
from trainer.ranks.runtime import Runtime, wants_cpu

log = logging.getLogger("convoy")

MIXED_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""Accelerate's word for each precision.dtype."""
PLUGINS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed scales, clips and steps by itself: for sharded weights "
    "choose FSDP there, and --parallel.strategy fsdp here.",
    "ACCELERATE_USE_MEGATRON_LM": "Choose another distributed type with `accelerate config`.",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "Ranks divide the batch and nothing else: leave it out.",
    "ACCELERATE_USE_SAGEMAKER": "Start the ranks with torchrun.",
}
"""Variables that hand the model to another library, and what to do instead."""
SHARDING = {
    "FSDP_VERSION": (("2",), "parallel.strategy=fsdp, which is version 2"),
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": (("false",), "parallel.activation_checkpointing"),
    "FSDP_IGNORED_MODULES": (("",), "parallel.strategy=fsdp, which shards every weight"),
}
"""Variables of Accelerate's FSDP that can have one value only, and what in the run's config says
so. Wrap policy, prefetching and ways of loading change neither the result nor what a rank keeps."""
RESHARDING = {True: ("true", "full_shard"), False: ("false", "shard_grad_op")}
"""Accelerate's words for parallel.reshard_after_forward."""


def check_accelerate(config: RunConfig, runtime: Runtime, env: Mapping[str, str]) -> None:
    """Refuse a run whose own config and accelerate config do not agree.

    Args:
        config: The run's config.
        runtime: This rank with its device.
        env: Environment variables, in which `accelerate launch` passes its config on.

    Raises:
        InputError: If they do not agree, or if Accelerate is not installed.
    """
    import_extra("accelerate", "accelerate")
    for name, remedy in PLUGINS.items():
        if _says(env, name) == "true":
            raise InputError(
                f"the accelerate config ({name})",
                given="true",
                expected="one process, data-parallel ranks or FSDP with parallel.engine=accelerate",
                remedy=remedy,
            )
    if _says(env, "ACCELERATE_USE_FSDP") == "true":
        _check_sharding(config, env)
    dtype = config.precision.dtype
    _agree(env, "ACCELERATE_MIXED_PRECISION", (MIXED_PRECISION[dtype],), f"precision.dtype={dtype}")
    _agree(env, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", ("1", "auto"), "train.micro_batch_size")
    _agree(env, "ACCELERATE_DYNAMO_BACKEND", (), "compile.enabled")
    devices = (str(runtime.device), runtime.device.type)
    _agree(env, "ACCELERATE_TORCH_DEVICE", devices, "parallel.device")
    if wants_cpu(env) and runtime.device.type != "cpu":
        raise InputError(
            "the accelerate config (ACCELERATE_USE_CPU)",
            given="true",
            expected=f"no such wish with parallel.device={config.parallel.device}",
            remedy="Leave parallel.device at auto, or `--cpu` out of `accelerate launch`.",
        )
    if runtime.launcher == "python" and wants_cpu(env) and "MASTER_PORT" in env:
        log.warning(
            "accelerate launch has started one process: on CPUs it leaves several to mpirun. For "
            "several ranks use torchrun, or `accelerate launch --multi_gpu --num_processes N` with "
            "--parallel.device cpu"
        )


def _check_sharding(config: RunConfig, env: Mapping[str, str]) -> None:
    """Refuse options of Accelerate's FSDP that the run's config contradicts."""
    parallel = config.parallel
    if parallel.strategy != "fsdp":
        raise InputError(
            "the accelerate config (ACCELERATE_USE_FSDP)",
            given="true",
            expected=f"what the run's config says (parallel.strategy={parallel.strategy})",
            remedy="Use --parallel.strategy fsdp, or leave FSDP out of the accelerate config.",
        )
    for name, (accepted, key) in SHARDING.items():
        _agree(env, name, accepted, key, f"Set it to {accepted[0] or 'nothing'} there.")
    again = parallel.reshard_after_forward
    key = f"parallel.reshard_after_forward={str(again).lower()}"
    _agree(env, "FSDP_RESHARD_AFTER_FORWARD", RESHARDING[again], key)
    for name, key in (
        ("FSDP_OFFLOAD_PARAMS", "cpu_offload"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "activation_checkpointing"),
    ):
        mine = str(getattr(parallel, key)).lower()
        _agree(env, name, (mine,), f"parallel.{key}={mine}")


def _says(env: Mapping[str, str], name: str) -> str:
    """The value of a variable in lower case; empty if it is not set."""
    return env.get(name, "").lower()


def _agree(
    env: Mapping[str, str],
    name: str,
    accepted: tuple[str, ...],
    key: str,
    remedy: str = "Say it there: the run's config decides, however the run is started.",
) -> None:
    """Refuse a variable of Accelerate that asks for something else than the run's config.

    `no` is what `accelerate launch` sets where nothing was asked for.
    """
    value = _says(env, name)
    if value not in ("", "no", *accepted):
        raise InputError(
            f"the accelerate config ({name})",
            given=value,
            expected=f"what the run's config says ({key})",
            remedy=remedy,
        )
