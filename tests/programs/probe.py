"""Run by torchrun in tests: what several ranks compute, compared with one process, as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from configs.load import load_config
from launch.entry import run_command
from trainer.backward.autograd import AutogradPasses
from trainer.build import build
from trainer.engines.native import NativeEngine
from trainer.loop import Run
from trainer.objective.evaluation import evaluate
from trainer.ranks.runtime import choose_device, detect, process_group
from trainer.ranks.stop_signals import stop_on_signals


def reference_gradient(run: Run, global_batch_index: int) -> torch.Tensor:
    """Gradient of the mean loss over one concatenated global batch, by plain autograd."""
    plan = run.plan
    global_batch = plan.global_batch(global_batch_index)
    indices = plan.order(global_batch.epoch)[
        global_batch.start : global_batch.start + global_batch.size
    ]
    inputs, targets = run.loader.train.gather(indices)  # type: ignore[attr-defined]
    module = run.state.engine.module
    loss = F.cross_entropy(module(run.evaluator.components.normalize(inputs)), targets)
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


def gradient_errors(run: Run) -> dict[str, Any]:
    """Largest relative difference to the reference in a full and in the short last global batch."""
    engine = run.state.engine
    assert isinstance(engine, NativeEngine)
    found: dict[str, Any] = {}
    for name, index in (("full", 0), ("short", run.plan.epoch_schedule.steps(0) - 1)):
        expected = reference_gradient(run, index)
        global_batch = run.plan.global_batch(index)
        syncs: list[bool] = []
        passes = engine.passes
        ddp = passes.model if isinstance(passes, AutogradPasses) else None
        hooks = []
        if isinstance(ddp, DistributedDataParallel):

            def watched(_: Any, __: Any, outputs: Any, ddp: Any = ddp, syncs: Any = syncs) -> None:
                syncs.append(ddp.require_backward_grad_sync)
                outputs[0].register_hook(lambda _: syncs.append(ddp.require_backward_grad_sync))

            hooks.append(ddp.register_forward_hook(watched))
        run.log.step([global_batch], run.loader.stream(index))
        for hook in hooks:
            hook.remove()
        module = engine.module
        actual = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        found[name] = {
            "size": global_batch.size,
            "mine": [micro.size for micro in global_batch.micro_batches],
            "error": float((actual - expected).abs().max() / expected.abs().max()),
            "syncs": syncs,
        }
    return found


def main(argv: Sequence[str]) -> int:
    config = load_config(argv, prog="probe", description="")
    runtime = choose_device(detect(os.environ), config.parallel)
    with stop_on_signals() as stop, process_group(runtime, config.parallel):
        run = build(config, runtime, stop)
        counts = evaluate(
            run.state.engine.module,
            run.loader,
            "test",
            num_samples=len(run.evaluator.components.data.test),
            batch_size=config.evaluate.batch_size,
            normalize=run.evaluator.components.normalize,
            task=run.evaluator.components.task,
            precision=run.state.precision,
            runtime=runtime,
            interrupted=lambda: False,
        )
        assert counts is not None
        result = {
            "rank": runtime.rank,
            "correct": counts.correct,
            "count": counts.count,
            "loss": counts.loss.hex(),
            "dropout": torch.rand(3).tolist(),
            "gradients": gradient_errors(run),
            "gradient_norm": float(run.log.step.gradient_norm()),
        }
        run.sinks.finish("completed")
    os.write(1, f"PROBE {json.dumps(result)}\n".encode())  # in one piece: ranks share the pipe
    return 0


if __name__ == "__main__":
    run_command(main)  # leaves before gloo's threads can abort
