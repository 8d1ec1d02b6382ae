"""A mini framework in pure python: lists, loops, and a hand-written backward for every layer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from math import exp, log, sqrt
from operator import mul
from typing import Protocol

Matrix = list[list[float]]


def transpose(matrix: Matrix) -> Matrix:
    return [list(column) for column in zip(*matrix, strict=True)]


def product(left: Matrix, right_transposed: Matrix) -> Matrix:
    """left @ right, row by row."""
    return [[sum(map(mul, row, column)) for column in right_transposed] for row in left]


class Layer(Protocol):
    def forward(self, inputs: Matrix) -> Matrix:
        """(B, in) -> (B, out)"""
        ...

    def backward(self, gradient: Matrix) -> Matrix:
        """Loss by output (B, out) -> loss by input (B, in)."""
        ...


class Linear:
    """`inputs @ weight.T + bias`; drawn as torch draws it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        bound = inputs**-0.5
        draw = random.uniform
        self.weight = [[draw(-bound, bound) for _ in range(inputs)] for _ in range(outputs)]
        self.bias = [[draw(-bound, bound) for _ in range(outputs)]]
        self.weight_gradient: Matrix = []
        self.bias_gradient: Matrix = []

    def forward(self, inputs: Matrix) -> Matrix:
        self.inputs = inputs
        bias = self.bias[0]
        return [
            [a + b for a, b in zip(row, bias, strict=True)] for row in product(inputs, self.weight)
        ]

    def backward(self, gradient: Matrix) -> Matrix:
        columns = transpose(gradient)
        self.weight_gradient = product(columns, transpose(self.inputs))
        self.bias_gradient = [[sum(column) for column in columns]]
        return product(gradient, transpose(self.weight))


class ReLU:
    def forward(self, inputs: Matrix) -> Matrix:
        self.outputs = [[max(value, 0.0) for value in row] for row in inputs]
        return self.outputs

    def backward(self, gradient: Matrix) -> Matrix:
        return [
            [g if value > 0 else 0.0 for g, value in zip(row, values, strict=True)]
            for row, values in zip(gradient, self.outputs, strict=True)
        ]


class Dropout:
    """Drops values with this probability and scales the others up."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def forward(self, inputs: Matrix) -> Matrix:
        scale, draw = 1 / (1 - self.probability), random.random
        self.mask = [[scale * (draw() >= self.probability) for _ in row] for row in inputs]
        return [list(map(mul, row, mask)) for row, mask in zip(inputs, self.mask, strict=True)]

    def backward(self, gradient: Matrix) -> Matrix:
        return [list(map(mul, row, mask)) for row, mask in zip(gradient, self.mask, strict=True)]


def cross_entropy(logits: Matrix, labels: Sequence[int]) -> tuple[float, Matrix]:
    """Mean of -log softmax(logits)[label], and its gradient by the logits."""
    total, gradient = 0.0, []
    for row, label in zip(logits, labels, strict=True):
        shifted = [exp(value - max(row)) for value in row]
        softmax = [value / sum(shifted) for value in shifted]
        total -= log(softmax[label])
        softmax[label] -= 1
        gradient.append([value / len(labels) for value in softmax])
    return total / len(labels), gradient


class Adam:
    """Adam of Kingma and Ba (2015) over the weights and biases of linear layers."""

    def __init__(self, layers: Sequence[Linear], rate: float) -> None:
        self.layers, self.rate, self.step_count = layers, rate, 0
        self.moments = [
            ([[0.0] * len(row) for row in matrix], [[0.0] * len(row) for row in matrix])
            for layer in layers
            for matrix in (layer.weight, layer.bias)
        ]

    def step(self) -> None:
        self.step_count += 1
        first, second = 1 - 0.9**self.step_count, 1 - 0.999**self.step_count
        pairs = [
            pair
            for layer in self.layers
            for pair in (
                (layer.weight, layer.weight_gradient),
                (layer.bias, layer.bias_gradient),
            )
        ]
        for (values, gradients), (means, squares) in zip(pairs, self.moments, strict=True):
            for value, gradient, mean, square in zip(
                values, gradients, means, squares, strict=True
            ):
                for i, g in enumerate(gradient):
                    mean[i] += 0.1 * (g - mean[i])
                    square[i] += 0.001 * (g * g - square[i])
                    scale = sqrt(square[i] / second) + 1e-8
                    value[i] -= self.rate / first * mean[i] / scale


class Network:
    """Linear layers of these sizes with ReLU and dropout between them."""

    def __init__(self, sizes: Sequence[int], dropout: float) -> None:
        self.linears = [Linear(a, b) for a, b in pairwise(sizes)]
        self.layers: list[Layer] = []
        for linear in self.linears[:-1]:
            self.layers += [linear, ReLU(), Dropout(dropout)]
        self.layers.append(self.linears[-1])

    def forward(self, values: Matrix, *, training: bool) -> Matrix:
        for layer in self.layers:
            if training or not isinstance(layer, Dropout):
                values = layer.forward(values)
        return values

    def backward(self, gradient: Matrix) -> None:
        for layer in reversed(self.layers):
            gradient = layer.backward(gradient)


def count_correct(logits: Matrix, labels: Sequence[int]) -> int:
    pairs = zip(logits, labels, strict=True)
    return sum(row.index(max(row)) == label for row, label in pairs)
