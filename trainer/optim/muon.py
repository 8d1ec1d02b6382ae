"""Muon for matrices and AdamW for the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Group = dict[str, Any]


class MuonWithAdamW(torch.optim.Optimizer):
    """torch.optim.Muon takes matrices only; every real network has other parameters too.

    Both use the same learning rate, which `adjust_lr_fn="match_rms_adamw"` makes meaningful: an
    update of Muon then has the size of one of AdamW (Liu et al., arXiv:2502.16982).
    """

    def __init__(
        self,
        params: list[nn.Parameter] | list[Group],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        adamw: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            params: Parameters, or groups of them.
            lr: Learning rate of both.
            weight_decay: Decoupled weight decay of both.
            momentum: Muon's, as are the arguments up to `adjust_lr_fn`; see torch.optim.Muon.
            nesterov: See there.
            ns_coefficients: See there.
            eps: See there.
            ns_steps: See there.
            adjust_lr_fn: See there.
            adamw: Further arguments of AdamW.
        """
        given: list[Any] = list(params)
        groups: list[Group] = given if isinstance(given[0], dict) else [{"params": given}]
        both: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        matrices = _members(groups, lambda p: p.dim() == 2)
        others = _members(groups, lambda p: p.dim() != 2)
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(
                torch.optim.Muon(
                    matrices,
                    **both,
                    momentum=momentum,
                    nesterov=nesterov,
                    ns_coefficients=ns_coefficients,
                    eps=eps,
                    ns_steps=ns_steps,
                    adjust_lr_fn=adjust_lr_fn,
                )
            )
        if others:
            self.parts.append(torch.optim.AdamW(others, **both, **(adamw or {})))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()
        self.register_load_state_dict_post_hook(lambda _: self._share())

    def _share(self) -> None:
        """State and groups are this optimizer's; the parts work on them."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.state = self.state
            part.param_groups = [next(groups) for _ in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "one gradient per step"
        for part in self.parts:
            if isinstance(part, torch.optim.Muon) and _is_sharded(part):
                _step_sharded(part)
            else:
                part.step()


def _is_sharded(muon: torch.optim.Muon) -> bool:
    return hasattr(muon.param_groups[0]["params"][0], "full_tensor")


@torch.no_grad()
def _step_sharded(muon: torch.optim.Muon) -> None:
    """`torch.optim.Muon.step` over matrices of which every rank holds rows.

    Momentum stays in rows. What a step adds is the orthogonal factor of a whole matrix: it is
    gathered, one matrix at a time, and computed by all ranks alike, each of which keeps its rows.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor
    from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

    for group in muon.param_groups:
        rate, momentum = float(group["lr"]), group["momentum"]
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            state = muon.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            mean, mine = state["momentum_buffer"].to_local(), gradient.to_local()
            mean.lerp_(mine, 1 - momentum)
            rows = DTensor.from_local(
                mine.lerp(mean, momentum) if group["nesterov"] else mean,
                gradient.device_mesh,
                gradient.placements,
                run_check=False,
                shape=gradient.shape,
                stride=gradient.stride(),
            )
            step = _zeropower_via_newtonschulz(
                rows.full_tensor(), group["ns_coefficients"], group["ns_steps"], group["eps"]
            )
            own = distribute_tensor(
                step.to(parameter.dtype).contiguous(),
                parameter.device_mesh,
                parameter.placements,
                src_data_rank=None,
            )
            weights = parameter.to_local()
            weights.mul_(1 - rate * group["weight_decay"])
            weights.add_(
                own.to_local(), alpha=-_adjust_lr(rate, group["adjust_lr_fn"], parameter.shape)
            )


def _members(groups: list[Group], wanted: Callable[[nn.Parameter], bool]) -> list[Group]:
    """The groups with those of their parameters that are wanted, empty ones left out."""
    found = [{**group, "params": [p for p in group["params"] if wanted(p)]} for group in groups]
    return [group for group in found if group["params"]]
