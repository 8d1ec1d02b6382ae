"""What a run says of itself on the screen: at its start, and at its end."""

from __future__ import annotations

import shlex

import torch

from configs.identity import flatten
from configs.idle_keys import Setting, unused_keys
from configs.schema import RunConfig
from configs.trust import FLAG, leads_to_code
from data.catalogue.catalog import CATALOG
from data.found import Found
from trainer.checkpoints.run_directory import RunDirectory
from trainer.components import Components
from trainer.loop import Run
from trainer.networks.module_state import modes_kept
from trainer.ranks.runtime import Runtime
from trainer.records.console import shown

GO_ON = (
    "--train.epochs N trains on, --checkpoint.resume never starts anew, another --name begins "
    "beside it"
)
"""What to do with a run that is finished."""


def opening(
    config: RunConfig,
    runtime: Runtime,
    components: Components,
    directory: RunDirectory,
    found: Found,
) -> list[str]:
    """A line each: the run, its data, its model, how it is executed, and what is worth knowing."""
    lines = [_where(config, runtime, directory), found.line(), _model(config, components)]
    if kept := modes_kept(components.model):
        lines.append(f"{kept} modules of the model stay in eval mode, as they came")
    if idle := unused_keys(config, _setting(config, runtime, components)):
        named = ", ".join(f"{key} (takes {what})" for key, what in idle.items())
        lines.append(f"without effect in this run: {named}")
    return [*lines, components.execution.line()]


def _setting(config: RunConfig, runtime: Runtime, components: Components) -> Setting:
    execution = components.execution
    return Setting(
        world_size=runtime.world_size,
        device=runtime.device.type,
        bf16_products=torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        compiled=execution.compiled,
        reduction=execution.reduction,
        published=config.data.dataset in CATALOG,
    )


def _where(config: RunConfig, runtime: Runtime, directory: RunDirectory) -> str:
    ranks = "1 rank" if runtime.world_size == 1 else f"{runtime.world_size} ranks"
    device = runtime.device.type
    if device == "cuda":
        device = torch.cuda.get_device_name(runtime.device)
    elif device == "cpu":
        threads = torch.get_num_threads()
        device = f"cpu, {threads} thread{'s'[: threads != 1]}"
    each = " each" if runtime.world_size > 1 else ""
    return f"run: {directory.path}; {ranks} on {device}{each}, {config.precision.dtype}"


def _model(config: RunConfig, components: Components) -> str:
    counts = [(p.numel(), p.requires_grad) for p in components.model.parameters()]
    total, trained = sum(n for n, _ in counts), sum(n for n, learns in counts if learns)
    frozen = "" if trained == total else f", {trained:,} of them trained"
    plan = components.plan
    return (
        f"model: {config.model.name}, {total:,} parameters{frozen}; "
        f"{config.optimizer.name}, global batch {plan.largest_global_batch.size:,}, "
        f"{components.schedule.total_steps:,} steps"
    )


def closing(run: Run, status: str, first_step: int) -> str:
    """What the run reached, and what may come next."""
    step = run.state.progress.step
    if status == "preempted":
        return (
            f"Stopped on request at step {step}; saved in {run.directory.path}. "
            "The same command continues."
        )
    if step > first_step:
        return f"{_reached(run)}\n{_next(run)}"
    return f"This run was already finished at step {step}: {GO_ON}.\n{_reached(run)}"


def _reached(run: Run) -> str:
    """What a finished run reached, on which samples, and with which weights."""
    progress, name, count = run.state.progress, run.selection.metric, len(run.data.test)
    final = progress.test or progress.metrics
    line = f"Final test {name} {shown(name, final[name])} on {count:,} samples"
    best = shown(name, progress.best[name]) if progress.best else "unknown"
    if not progress.test:
        line += f" (best {best} at step {progress.best_step}, chosen on these very samples)"
    elif progress.best_step == progress.step:
        line += f" (the weights that are best on the validation set: {best})"
    elif progress.test_best:
        line += (
            f"; {shown(name, progress.test_best[name])} with the weights of step "
            f"{progress.best_step}, the best on the validation set ({best})"
        )
    seconds = f"{run.log.elapsed_seconds:.1f} s of training"
    return f"{line}, {seconds}, run directory {run.directory.path}"


def _next(run: Run) -> str:
    path = shlex.quote(str(run.directory.path))
    own = any(
        leads_to_code(value)
        for key, value in flatten(run.config).items()
        if key.startswith(("model.", "data.", "task."))
    )
    flag = f" {FLAG}" if own else ""
    return (
        f"Next: convoy evaluate {path}{flag} for details, convoy compare {path} OTHER, "
        "convoy predict, convoy export; --train.epochs N trains on."
    )
