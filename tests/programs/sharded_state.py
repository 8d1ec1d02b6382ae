"""Run by torchrun in tests: the state of sharded weights, gathered and loaded again, as JSON."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from configs.schema_execution import ParallelConfig
from launch.entry import run_command
from trainer.engines.dtensor import (
    full_optimizer_state,
    full_state,
    load_full_optimizer_state,
    load_full_state,
)
from trainer.ranks.collectives import broadcast_object
from trainer.ranks.runtime import Runtime, choose_device, detect, process_group


class Net(nn.Module):
    """Sizes that two ranks cannot divide evenly, and a key that is no attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 1)
        self.register_buffer("count", torch.tensor(3))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.first(inputs))
        return outputs

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}no.attribute"] = torch.ones(2)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        state_dict.pop(f"{prefix}no.attribute")
        super()._load_from_state_dict(state_dict, prefix, *rest)


def made(runtime: Runtime, seed: int, *, sharded: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Net()
    if sharded:
        fully_shard(model, mesh=init_device_mesh("cpu", (runtime.world_size,)))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A step on one sample, the same on every rank: its gradient is also the average."""
    model(torch.arange(4.0)[None]).sum().backward()
    optimizer.step()


def flat(weights: dict[str, Any], optimizer: dict[str, Any]) -> dict[str, Any]:
    """Every entry of both states under one name."""
    named = {
        f"{index}/{name}": v for index, s in optimizer["state"].items() for name, v in s.items()
    }
    return weights | named | {"groups": optimizer["param_groups"]}


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether names, types of tensors and bits are the same."""
    return list(ours) == list(theirs) and all(
        type(a) is type(b) and (torch.equal(a, b) if isinstance(a, Tensor) else a == b)
        for a, b in zip(ours.values(), theirs.values(), strict=True)
    )


def examine(runtime: Runtime) -> dict[str, Any]:
    plain, plain_optimizer = made(runtime, 0, sharded=False)
    model, optimizer = made(runtime, 0, sharded=True)
    early = full_optimizer_state(optimizer)["state"]
    step(plain, plain_optimizer)
    step(model, optimizer)
    gathered = full_state(model), full_optimizer_state(optimizer)
    expected = dict(plain.state_dict()), plain_optimizer.state_dict()
    state = broadcast_object(runtime, gathered)
    kept = copy.deepcopy(state)
    other, other_optimizer = made(runtime, 1, sharded=True)
    load_full_state(other, state[0])
    load_full_optimizer_state(other_optimizer, state[1])
    again = full_state(other), full_optimizer_state(other_optimizer)
    return {
        "state before the first step": early,
        "keys": list(gathered[0]),
        "gathered is that of one rank": same(flat(*gathered), flat(*expected)),
        "what was loaded is untouched": same(flat(*state), flat(*kept)),
        "loaded is what was saved": same(flat(*again), flat(*kept)),
    }


def main(_: Sequence[str]) -> int:
    parallel = ParallelConfig(device="cpu")
    runtime = choose_device(detect(os.environ), parallel)
    with process_group(runtime, parallel):
        found = examine(runtime)
    os.write(1, f"RANK {runtime.rank} {json.dumps(found)}\n".encode())
    return 0


if __name__ == "__main__":
    run_command(main)  # leaves before gloo's threads can abort
