"""An exported model computes what the run computes, anywhere; what does not is not written."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from configs.errors import InputError
from data.formats.idx import read_idx
from launch.export import main
from launch.using.exporting import FORMATS, ExportFailed, check, make_inputs
from launch.using.trained import Trained, load_trained
from tests.support.processes import ROOT, launch
from tests.support.runs import train_here
from trainer.networks.mlp import MLP

FILES = {"safetensors": "m.safetensors", "torch_export": "m.pt2", "onnx": "m.onnx"}


@pytest.fixture(scope="module")
def normed_run(tmp_path_factory: pytest.TempPathFactory, idx_folder: Path) -> Path:
    """A run with batch norm and an average, trained in bfloat16."""
    return train_here(
        tmp_path_factory.mktemp("normed"),
        idx_folder,
        '--model.kwargs={"hidden": [16], "dropout": 0.2, "batch_norm": true}',
        "--train.ema_decay=0.9",
        "--train.max_steps=20",
        "--precision.dtype=bf16",
    )


@pytest.fixture(scope="module")
def images(idx_folder: Path) -> Tensor:
    """The test set, `(101, 1, 9, 7)` uint8."""
    return torch.from_numpy(read_idx(idx_folder / "test-images-idx3-ubyte"))[:, None]


def export(run: Path, folder: Path, kind: str, *more: str) -> Path:
    output = folder / FILES[kind]
    assert main([str(run), f"--format={kind}", f"--output={output}", *more]) == 0
    assert [path.name for path in folder.iterdir()] == [output.name]
    return output


def eager(trained: Trained, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = trained.module(trained.normalize(images))
    return logits


def onnx_session(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(None, {"inputs": inputs.numpy()})[0])


@pytest.mark.parametrize("which", ["trained_run", "normed_run"])
def test_safetensors_hold_the_weights_and_all_that_is_needed_to_use_them(
    which: str, tmp_path: Path, images: Tensor, request: pytest.FixtureRequest
) -> None:
    """Law: a reader without this project's run directory rebuilds the same logits."""
    run = request.getfixturevalue(which)
    with safe_open(export(run, tmp_path, "safetensors"), "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = {k: json.loads(v) for k, v in file.metadata().items() if k != "format"}
    trained = load_trained(run)
    assert facts["input_shape"] == [1, 9, 7]
    assert facts["classes"] == list("01234")
    assert facts["weights"] == ("average" if which == "normed_run" else "raw")
    assert facts["step"] == trained.step
    model = MLP(facts["input_shape"], facts["num_classes"], **facts["config"]["model.kwargs"])
    model.load_state_dict(weights)
    norm = facts["normalization"]
    inputs = (images / norm["scale"] - norm["mean"][0]) / norm["std"][0]
    with torch.no_grad():
        assert torch.allclose(model.eval()(inputs), eager(trained, images), atol=1e-5)


@pytest.mark.parametrize("which", ["trained_run", "normed_run"])
def test_a_torch_program_has_the_bits_of_the_module_at_any_batch_size(
    which: str, tmp_path: Path, images: Tensor, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(which)
    extra = {"classes": "", "normalization": "", "includes_normalization": ""}
    program = torch.export.load(export(run, tmp_path, "torch_export"), extra_files=extra).module()
    trained = load_trained(run)
    for size in (1, 2, 13, 101):
        assert torch.equal(program(images[:size]), eager(trained, images[:size]))
    assert json.loads(extra["classes"]) == list("01234")
    assert json.loads(extra["includes_normalization"]) is True
    assert json.loads(extra["normalization"])["scale"] == 255.0


@pytest.mark.parametrize("which", ["trained_run", "normed_run"])
def test_an_onnx_program_agrees_with_the_module_at_any_batch_size(
    which: str,
    tmp_path: Path,
    images: Tensor,
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """And the exporter, which likes to talk, says one line and leaves logging as it was."""
    import onnx

    run = request.getfixturevalue(which)
    capfd.readouterr()
    path = export(run, tmp_path, "onnx")
    shown = capfd.readouterr()
    assert (len(shown.out.splitlines()), shown.err) == (1, "")
    assert logging.root.manager.disable == 0
    session, trained = onnx_session(path), load_trained(run)
    for size in (1, 2, 13, 101):
        assert torch.allclose(session(images[:size]), eager(trained, images[:size]), atol=1e-4)
    model = onnx.load(path)
    facts = {item.key: json.loads(item.value) for item in model.metadata_props}
    assert facts["classes"] == list("01234")
    assert facts["config"]["train.global_batch_size"] == 24
    shape = model.graph.input[0].type.tensor_type.shape
    assert [d.dim_param or d.dim_value for d in shape.dim] == ["batch", 1, 9, 7]
    # A trace keeps the source file of every operation, unless it is told not to.
    assert str(ROOT / "trainer").encode() not in path.read_bytes()


@pytest.mark.parametrize("kind", ["torch_export", "onnx"])
def test_without_normalisation_the_program_takes_normalised_floats(
    trained_run: Path, tmp_path: Path, images: Tensor, kind: str
) -> None:
    path = export(trained_run, tmp_path, kind, "--no-include-normalization")
    trained = load_trained(trained_run)
    run = onnx_session(path) if kind == "onnx" else torch.export.load(path).module()
    inputs = trained.normalize(images[:7])
    assert inputs.dtype is torch.float32
    assert torch.allclose(run(inputs), eager(trained, images[:7]), atol=1e-4)


@pytest.mark.process
def test_the_command_writes_beside_the_run_unless_told_otherwise(
    trained_run: Path, tmp_path: Path
) -> None:
    """From any folder, although the script is called like a package of others."""
    run = Path(shutil.copytree(trained_run, tmp_path / "run", symlinks=True))
    before = {path.name for path in run.iterdir()}
    finished = launch("launch/export.py", "run", "--format=safetensors", cwd=tmp_path)
    assert finished.status == 0, finished.output
    assert "read back, differs from the model by at most 0" in finished.stdout
    assert {path.name for path in run.iterdir()} - before == {"model.safetensors"}


@pytest.mark.parametrize("kind", FORMATS)
def test_what_computes_something_else_is_not_written(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A writer that loses one weight is caught; a file that was there is as it was."""
    make = FORMATS[kind]

    def lossy(trained: Trained, program: nn.Module, *rest: Any) -> Any:
        parameter = next(program.parameters())
        kept = parameter.data.clone()
        parameter.data[0, 0] += 1.0
        made = make(trained, program, *rest)  # type: ignore[arg-type]
        parameter.data.copy_(kept)
        return made

    monkeypatch.setitem(FORMATS, kind, lossy)
    output = tmp_path / FILES[kind]
    output.write_text("before")
    with pytest.raises(ExportFailed, match="differs from the model by"):
        main([str(trained_run), f"--format={kind}", f"--output={output}"])
    assert output.read_text() == "before"
    assert list(tmp_path.iterdir()) == [output]


class Fickle(MLP):
    """A model whose graph depends on its data."""

    def forward(self, inputs: Tensor) -> Tensor:
        logits = super().forward(inputs)
        return logits if bool((logits.sum() > 0).item()) else 2 * logits


def test_a_model_that_is_no_graph_is_refused_and_nothing_is_left(
    tmp_path: Path, idx_folder: Path
) -> None:
    run = train_here(
        tmp_path,
        idx_folder,
        "--model.name=tests.launch.test_export:Fickle",
        "--train.max_steps=2",
    )
    before = sorted(run.iterdir())
    for kind in ("torch_export", "onnx"):
        with pytest.raises(InputError, match=f"cannot be exported as {kind}"):
            main([str(run), f"--format={kind}", "--trust_code"])
    assert sorted(run.iterdir()) == before
    assert main([str(run), "--format=safetensors", "--trust_code"]) == 0


@pytest.mark.parametrize("error", [float("nan"), 1e-3])
def test_a_program_that_is_off_is_caught(error: float) -> None:
    module = nn.Linear(3, 2)
    with pytest.raises(ExportFailed, match="differs from the model by"):
        check(module, lambda batch: module(batch) + error, torch.ones(5, 3))


def test_the_tolerance_grows_with_the_logits() -> None:
    module = nn.Linear(3, 2)
    nn.init.constant_(module.weight, 100.0)
    difference = check(module, lambda batch: module(batch) + 1e-3, torch.ones(5, 3))
    assert difference == pytest.approx(1e-3, rel=0.1)


def test_a_program_of_a_fixed_batch_is_caught() -> None:
    module = nn.Linear(3, 2)

    def fixed(batch: Tensor) -> Tensor:
        assert len(batch) == 1, "made for one"
        logits: Tensor = module(batch)
        return logits

    with pytest.raises(ExportFailed, match=r"does not run on a batch of 2 \(made for one"):
        check(module, fixed, torch.ones(5, 3))


def test_the_inputs_of_the_check_are_of_the_stored_type(trained_run: Path) -> None:
    facts = load_trained(trained_run).facts
    inputs = make_inputs(facts, 500)
    assert (inputs.dtype, inputs.shape) == (torch.uint8, (500, 1, 9, 7))
    assert float(inputs.double().mean()) / 255 == pytest.approx(facts.mean[0], abs=0.02)
    assert float(inputs.double().std()) / 255 == pytest.approx(facts.std[0], rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format=onnx", "--output=/no/such/m.onnx"], "expected a file in a folder that exists"),
        (["--format=onnx", "--data.root=x"], "expected no config key here"),
        (["--format=onnx", "--checkpoint=nowhere"], "--checkpoint: given 'nowhere'"),
        (["--format=onnx", "--output=."], "expected a file, not a folder"),
    ],
)
def test_bad_arguments_give_one_message(
    trained_run: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        main([str(trained_run), *arguments])


@pytest.mark.parametrize("module", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_names_the_extra(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"{module}.* is not installed .*\.\[export\]"):
        main([str(trained_run), "--format=onnx", f"--output={tmp_path / 'm.onnx'}"])
    assert list(tmp_path.iterdir()) == []
