"""A trained model for other programs: safetensors, torch.export or ONNX, checked before it is kept.

Every format is made in memory, read back and compared with the module it came from; the caller gets
bytes that have passed. Programs compute in float32, whatever the training used.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from configs.errors import InputError, one_line
from configs.identity import flatten
from configs.imports import import_extra
from data.facts import InputFacts, read_model
from data.normalize import Normalize
from data.structures import outline
from launch.using.trained import Trained
from trainer.ranks.failures import RunFailed

TOLERANCE = 1e-4
"""Most by which an exported program may differ from the module, relative to the largest logit (or
to 1): float32 kernels of two libraries add in different orders."""
BATCH_SIZES = (1, 2, 5)
"""Batch sizes a program is checked at."""
INPUT, OUTPUT = "inputs", "logits"
ANY_BATCH = ({0: Dim("batch")},)


class ExportFailed(RunFailed):
    """What was exported does not compute what the model computes; nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A finished export."""

    content: bytes
    takes: str
    """What goes in, for a person to read."""
    gives: str
    """What comes out."""
    difference: float
    """Largest difference from the module that was found, in logits."""


class Program(nn.Module):
    """Inputs as they are stored -> logits; without `normalize`, normalised inputs -> logits."""

    def __init__(self, module: nn.Module, normalize: Normalize | None) -> None:
        super().__init__()
        self.module = module
        self.normalize = normalize

    def forward(self, inputs: Tensor) -> Tensor:
        if self.normalize is not None:
            inputs = self.normalize(inputs)
        logits: Tensor = self.module(inputs)
        return logits


def export(trained: Trained, kind: str, *, include_normalization: bool) -> Exported:
    """Export a model that lies on the CPU.

    Args:
        trained: The run.
        kind: safetensors, or one of FORMATS.
        include_normalization: Let the program take the inputs as they are stored (uint8 images);
            otherwise float32 that the caller has normalised. Weights alone are not affected.

    Raises:
        InputError: If the model cannot be exported in this format, or an extra is missing.
        ExportFailed: If the result differs from the module by more than TOLERANCE.
    """
    if kind == "safetensors":
        return Exported(content=_weights(trained), takes="", gives="", difference=0.0)
    facts = trained.facts
    facts.require_one_input("a program")
    program = Program(trained.module, trained.normalize if include_normalization else None).eval()
    stored = make_inputs(facts, max(BATCH_SIZES), known_values(trained.directory))
    inputs = stored if include_normalization else trained.normalize(stored)
    outputs = None if trained.config.model.forward else program(inputs)
    if not isinstance(outputs, Tensor):
        raise InputError(
            "model",
            given=trained.config.model.forward or outline(outputs),
            expected="one that makes one tensor of its inputs, without model.forward",
            remedy="--format safetensors always works.",
        )
    content, run = FORMATS[kind](trained, program, inputs, include_normalization)
    shape = ", ".join(("batch", *map(str, facts.input_shape)))
    return Exported(
        content=content,
        takes=f"{str(inputs.dtype).removeprefix('torch.')} ({shape})",
        gives=f"logits (batch{''.join(f', {size}' for size in outputs.shape[1:])})",
        difference=check(program, run, inputs),
    )


def known_values(directory: Path) -> tuple[float, float] | None:
    """Least and largest of the training inputs that the run looked at, if it wrote them down."""
    try:
        found = read_model(directory / "model.json")[1]["data"]["values"]
        return float(found[0]), float(found[1])
    except (FileNotFoundError, KeyError, TypeError):
        return None


def make_inputs(facts: InputFacts, count: int, values: tuple[float, float] | None = None) -> Tensor:
    """Random inputs `(count, *input_shape)` of the stored type, spread like the training data.

    Whole numbers that are not normalised, such as token ids, lie between `values`.
    """
    generator = torch.Generator().manual_seed(0)
    plain = (facts.mean, facts.std, facts.scale) == ((0.0,), (1.0,), 1.0)
    if plain and values is not None and facts.dtype in ("int16", "int32", "int64"):
        low, high = map(int, values)
        shape = (count, *facts.input_shape)
        drawn = torch.randint(low, high + 1, shape, generator=generator)
        return drawn.to(getattr(torch, facts.dtype))
    noise = torch.randn(count, *facts.input_shape, generator=generator)
    shape = (-1, *[1] * (len(facts.input_shape) - 1)) if len(facts.mean) > 1 else (1,)
    mean, std = (torch.tensor(values).reshape(shape) for values in (facts.mean, facts.std))
    inputs = (noise * std + mean) * facts.scale
    dtype = getattr(torch, facts.dtype or ("uint8" if facts.scale == 255.0 else "float32"))
    if dtype.is_floating_point:
        return inputs.to(dtype)
    limits = torch.iinfo(dtype)
    return inputs.round().clamp(limits.min, limits.max).to(dtype)


@torch.no_grad()
def check(module: nn.Module, run: Callable[[Tensor], Tensor], inputs: Tensor) -> float:
    """The largest difference between a program and the module, at several batch sizes.

    Raises:
        ExportFailed: If it is more than TOLERANCE.
    """
    worst = 0.0
    for size in BATCH_SIZES:
        expected = module(inputs[:size])
        try:
            found = run(inputs[:size])
        except Exception as error:  # each library has errors of its own
            raise ExportFailed(
                f"the exported program does not run on a batch of {size} ({one_line(error)})"
            ) from error
        if found.shape != expected.shape:
            raise ExportFailed(
                f"the exported program makes {tuple(found.shape)} of a batch of {size}, the model "
                f"makes {tuple(expected.shape)}"
            )
        difference = float((found - expected).abs().max())
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        if not difference <= allowed:  # not a number is refused, too
            raise ExportFailed(
                f"the exported program differs from the model by {difference:.3g} (allowed: "
                f"{allowed:.3g}) on a batch of {size}"
            )
        worst = max(worst, difference)
    return worst


def describe(trained: Trained, include_normalization: bool | None) -> dict[str, str]:
    """What goes with every export, as JSON texts: safetensors and ONNX hold nothing but texts."""
    facts = trained.facts
    normalization = {"mean": facts.mean, "std": facts.std, "scale": facts.scale}
    content: dict[str, Any] = {
        "run": trained.config.name,
        "checkpoint": trained.checkpoint_name,
        "step": trained.step,
        "weights": trained.weights,
        "input_shape": facts.input_shape,
        "input_dtype": facts.dtype,
        "normalization": normalization,
        "fit": facts.to_json()["fit"],
        "num_classes": facts.num_classes,
        "classes": facts.class_names,
        "config": flatten(trained.config),
    }
    if include_normalization is not None:
        content["includes_normalization"] = include_normalization
    return {name: json.dumps(value, default=str) for name, value in content.items()}


Made = tuple[bytes, Callable[[Tensor], Tensor]]
"""The content of a file, and the program that was read back from it."""


def _weights(trained: Trained) -> bytes:
    """The state dict; compared bit by bit with what is read back."""
    from safetensors.torch import load, save

    # Copies: names that share memory (tied weights) cannot be saved as they are.
    weights = {
        name: value.detach().clone().contiguous()
        for name, value in trained.module.state_dict().items()
        if isinstance(value, Tensor)
    }
    content = save(weights, metadata={"format": "pt", **describe(trained, None)})
    found = load(content)
    if any(found[name].ne(value).any() for name, value in weights.items()):
        raise ExportFailed("the weights that were read back are not those of the checkpoint")
    return content


def _torch_export(trained: Trained, program: Program, inputs: Tensor, normalized: bool) -> Made:
    file = io.BytesIO()
    torch.export.save(
        _trace(program, inputs, "torch_export"), file, extra_files=describe(trained, normalized)
    )
    content = file.getvalue()
    loaded = torch.export.load(io.BytesIO(content)).module()
    return content, loaded


def _onnx(trained: Trained, program: Program, inputs: Tensor, normalized: bool) -> Made:
    checker = import_extra("onnx.checker", "export")
    runtime = import_extra("onnxruntime", "export")
    import_extra("onnxscript", "export")
    traced = _trace(program, inputs, "onnx")
    with _quiet(), _refused("onnx"):
        made = torch.onnx.export(
            traced,
            (inputs,),
            dynamic_shapes=ANY_BATCH,
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    assert made is not None
    made.model.metadata_props.update(describe(trained, normalized))
    content: bytes = made.model_proto.SerializeToString()
    checker.check_model(content, full_check=True)
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: inputs.numpy()})[0])

    return content, run


def _trace(program: Program, inputs: Tensor, kind: str) -> ExportedProgram:
    """The program as a graph, for any batch size."""
    with _refused(kind):
        traced = torch.export.export(program, (inputs,), dynamic_shapes=ANY_BATCH)
    for part in traced.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)  # paths of this machine's sources
    return traced


@contextmanager
def _refused(kind: str) -> Iterator[None]:
    """A model that cannot become a graph is the user's to change, or to export as weights."""
    try:
        yield
    except Exception as error:  # whatever the tracer trips over in a user's code
        raise InputError(
            f"the model cannot be exported as {kind} ({one_line(error)})",
            expected="a forward pass that is one graph for every batch size",
            remedy="See https://docs.pytorch.org/docs/stable/export.html for what such a graph can "
            "hold; --format safetensors always works.",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs every optional package it does without, and warns of its own innards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


FORMATS: dict[str, Callable[[Trained, Program, Tensor, bool], Made]] = {
    "torch_export": _torch_export,
    "onnx": _onnx,
}
