"""What an optimizer keeps of each parameter, by the names that it has in its state."""

SCALARS = frozenset(("step", "eta", "mu"))
"""One number, whatever shape the parameter has."""
ELEMENTWISE = frozenset(
    [
        *("acc_delta", "ax", "exp_avg", "exp_avg_sq", "exp_inf", "grad_avg", "max_exp_avg_sq"),
        *("momentum_buffer", "prev", "square_avg", "step_size", "sum"),
    ]
)
"""Of the parameter's shape, in optimizers of torch and ours."""
