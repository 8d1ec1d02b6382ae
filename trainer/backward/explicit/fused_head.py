"""The last layer, its loss and both their gradients as one GPU kernel.

On the MNIST network these are six small kernels in a row, which take a quarter of a step. Imports
triton, which torch brings along for GPUs; whoever may not have it imports this when it is needed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16
"""Samples of a program, the fewest that tensor cores take."""
MOST_INPUTS, MOST_CLASSES = 512, 64
"""A program holds its inputs and the weights whole."""
POINTERS = [
    "entering_ptr",
    "weight_ptr",
    "bias_ptr",
    "logp_gradient_ptr",
    "logits_ptr",
    "logp_ptr",
    "gradient_ptr",
    "below_ptr",
]


# Batches of a row of steps lie one after the other, some at addresses that others are not:
# compiling anew for those would fail while a graph is recorded.
@triton.jit(  # type: ignore[untyped-decorator, unused-ignore]
    do_not_specialize=["rows"], do_not_specialize_on_alignment=POINTERS
)
def _kernel(  # type: ignore[no-untyped-def]
    entering_ptr,
    weight_ptr,
    bias_ptr,
    logp_gradient_ptr,
    logits_ptr,
    logp_ptr,
    gradient_ptr,
    below_ptr,
    rows,
    inputs,
    classes,
    scale,
    ROWS: tl.constexpr,
    INPUTS: tl.constexpr,
    CLASSES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, CLASSES)[None, :]
    at = row * classes + column
    inside = (row < rows) & (column < classes)
    k = tl.arange(0, INPUTS)
    h_at = row * inputs + k[None, :]
    h_inside = (row < rows) & (k[None, :] < inputs)
    h = tl.load(entering_ptr + h_at, h_inside, 0.0).to(tl.float32)
    w_inside = (k[:, None] < inputs) & (column < classes)
    w = tl.load(weight_ptr + k[:, None] * classes + column, w_inside, 0.0).to(tl.float32)
    bias = tl.load(bias_ptr + column, column < classes, 0.0).to(tl.float32)

    z = tl.dot(h, w, input_precision=PRECISION) * scale + bias
    tl.store(logits_ptr + at, z, inside)
    masked = tl.where(column < classes, z, -float("inf"))
    shifted = masked - tl.max(masked, 1)[:, None]
    logp = shifted - tl.log(tl.sum(tl.exp(shifted), 1))[:, None]
    tl.store(logp_ptr + at, logp, inside)

    logp_gradient = tl.load(logp_gradient_ptr + at, inside, 0.0)
    gradient = logp_gradient - tl.exp(logp) * tl.sum(logp_gradient, 1)[:, None]
    rounded = gradient.to(gradient_ptr.dtype.element_ty)
    tl.store(gradient_ptr + at, rounded, inside)
    below = tl.dot(rounded.to(tl.float32), tl.trans(w), input_precision=PRECISION) * scale
    tl.store(below_ptr + h_at, tl.where(h > 0, below, 0.0), h_inside)


def takes(inputs: int, classes: int) -> bool:
    """Whether the kernel has room for a layer of that many inputs and outputs."""
    return inputs <= MOST_INPUTS and classes <= MOST_CLASSES


def head(
    entering: Tensor,
    weight: Tensor,
    bias: Tensor,
    logp_gradient: Tensor,
    *,
    scale: float,
    logits: Tensor,
    logp: Tensor,
    gradient: Tensor,
    below: Tensor,
) -> None:
    """`logits = scale * entering @ weight + bias`, and back through softmax to what is below.

    Args:
        entering: Activations `(B, in)` of any precision, contiguous like all others; where they are
            not positive nothing goes back: they come from a ReLU.
        weight: `(in, classes)` of that type.
        bias: `(classes,)` of that type.
        logp_gradient: Gradient of the loss by the log-probabilities `(B, classes)`, float32.
        scale: Factor of the product.
        logits: To be written, as the others that follow: `(B, classes)`, float32.
        logp: Log-probabilities, float32.
        gradient: Of the loss by the logits, of the activations' type.
        below: Of the loss by what became `entering` in the ReLU, `(B, in)`, of that type.
    """
    rows, inputs = entering.shape
    classes = len(bias)
    short = entering.dtype is not torch.float32  # tf32 has all digits of bf16 and fp16
    exact = torch.get_float32_matmul_precision() == "highest" and not short
    _kernel[(triton.cdiv(rows, ROWS),)](
        entering,
        weight,
        bias,
        logp_gradient,
        logits,
        logp,
        gradient,
        below,
        rows,
        inputs,
        classes,
        scale,
        ROWS=ROWS,
        INPUTS=max(triton.next_power_of_2(inputs), 16),
        CLASSES=max(triton.next_power_of_2(classes), 16),
        PRECISION="ieee" if exact else "tf32",
    )
