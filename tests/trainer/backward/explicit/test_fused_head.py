"""The kernel of the last layer is the operations it stands for."""

from __future__ import annotations

import copy
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

from tests.support.explicit import Dtype, as_batch, batch, explicit, network
from tests.support.processes import run_code

SHAPES = ((64, 128, 10), (32, 128, 10), (7, 9, 5), (16, 16, 16), (1, 33, 2), (40, 200, 47))
ERRORS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""The most that the kernel may be off in each type; the interpreter cuts digits off."""


def largest_difference(
    device: torch.device, rows: int, inputs: int, classes: int, dtype: torch.dtype = torch.float32
) -> float:
    """Between what the kernel writes and what float64 says, relative to the largest value."""
    from trainer.backward.explicit.fused_head import head

    generator = torch.Generator().manual_seed(rows)
    entering = torch.randn(rows, inputs, generator=generator).relu()
    weight, bias = torch.randn(inputs, classes, generator=generator), torch.randn(classes)
    entering, weight, bias = (tensor.to(dtype) for tensor in (entering, weight, bias))
    targets = torch.randint(0, classes, (rows,), generator=generator)
    goal = -0.25 * (0.9 * F.one_hot(targets, classes).float() + 0.1 / classes)
    written = [torch.full((rows, classes), 9.0) for _ in range(2)]
    written += [torch.full((rows, width), 9.0, dtype=dtype) for width in (classes, inputs)]
    on = [tensor.to(device) for tensor in (entering, weight, bias, goal)]
    out = [tensor.to(device) for tensor in written]
    names = ("logits", "logp", "gradient", "below")
    head(*on, scale=1.25, **dict(zip(names, out, strict=True)))

    hidden = entering.double().requires_grad_()
    logits = 1.25 * hidden @ weight.double() + bias.double()
    logits.retain_grad()
    logp = torch.log_softmax(logits, 1)
    (logp * goal.double()).sum().backward()
    assert logits.grad is not None
    assert hidden.grad is not None
    below = hidden.grad * (entering > 0)
    expected = [logits.detach(), logp.detach(), logits.grad, below]
    errors = [
        float((mine.cpu().double() - theirs).abs().max() / theirs.abs().max())
        for mine, theirs in zip(out, expected, strict=True)
    ]
    return max(errors)


class Streams:
    """Side streams of a CPU, in their turn."""

    streams = (1,)

    def beside(self, index: int) -> AbstractContextManager[None]:
        return nullcontext()

    def mark(self) -> str:
        return "drawn"

    def wait(self, event: object) -> None:
        assert event == "drawn"

    def join(self) -> None:
        pass


def passes_agree(dtype: Dtype, rtol: float) -> bool:
    """Passes with the kernel, which draw batch by batch, and passes without, which do not."""
    from trainer.backward.explicit.fused_head import head

    module = network(dropout=0.3, hidden=(9, 7))
    plain, made = explicit(copy.deepcopy(module), 0.1, dtype), explicit(module, 0.1, dtype)
    made.chain.head = head
    made.chain.branches = made.drawing = Streams()  # type: ignore[assignment]
    inputs, targets = batch(12)
    for clear in (True, False):
        found = []
        for passes in (plain, made):
            torch.manual_seed(3)
            passes.stage(inputs, targets, 0.25, 2)
            rows, metrics = [], []
            for _ in range(2):
                if clear:
                    passes.clear()
                metrics += passes(as_batch(inputs, targets), 0.25)[:2]
                rows.append(passes.flat.gradients.clone())
            found.append([*rows, *metrics[-2:]])
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=rtol, atol=rtol / 10)
    return True


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ERRORS)
def test_on_the_gpu(gpu: torch.device, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    assert largest_difference(gpu, *shape, dtype) < ERRORS[dtype]


@pytest.mark.process
def test_interpreted() -> None:
    """triton's interpreter executes the same program on a CPU; it must be chosen at import."""
    if find_spec("triton") is None:
        pytest.skip(
            "triton IS NOT INSTALLED: it comes with torch for GPUs, or `pip install triton`"
        )
    program = "from tests.trainer.backward.explicit.test_fused_head import *\n"
    program += "assert passes_agree('fp32', 1e-5) and passes_agree('bf16', 2e-2)\n"
    program += "for dtype, most in ERRORS.items():\n"
    program += "    for shape in SHAPES:\n"
    program += "        assert largest_difference(torch.device('cpu'), *shape, dtype) < most\n"
    env = {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    finished = run_code(program, env=env)
    assert finished.status == 0, finished.stderr
