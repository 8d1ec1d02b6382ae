"""A run from a program: objects in place of import paths, and a process left as it was found."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from configs.errors import InputError
from configs.load import load_config
from tests.support.own_objects import Net, net, own_loss, sets, train
from tests.support.runs import assert_same_bits, comparable, train_here
from trainer.fit import fit
from trainer.ranks.failures import Diverged

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_trains_objects_and_returns_what_became_of_them(tmp_path: Path) -> None:
    run = train(tmp_path)
    assert (run.status, run.step, run.directory) == ("completed", 24, tmp_path / "own")
    assert run.metrics["count"] == 31
    assert run.metrics == {
        key.removeprefix("eval/"): value
        for key, value in run.history[-1].items()
        if key.startswith("eval/")
    }
    assert run.best["accuracy"] >= run.metrics["accuracy"] > 0.4
    inputs, labels = sets()[1].tensors
    with torch.no_grad():
        correct = int((run.model(inputs).argmax(1) == labels).sum())
    assert correct == run.metrics["correct"], "the model is the one that was evaluated"
    assert len(run.history) == 24 + 3
    assert "own, completed at step 24" in repr(run)


def test_objects_and_import_paths_train_the_same_bits(tmp_path: Path, idx_folder: Path) -> None:
    """One way: a config and its keys, given here and there."""
    common = {"data.root": str(idx_folder), "parallel.device": "cpu", "logging.progress": "off"}
    run = fit(
        config="idx",
        name="run",
        epochs=2,
        batch_size=24,
        output_dir=str(tmp_path / "fit"),
        **{"evaluate.batch_size": 40},
        **common,
    )
    train_here(tmp_path / "command", idx_folder)
    assert_same_bits(tmp_path / "command/run", run.directory)
    assert comparable(tmp_path / "command/run") == comparable(run.directory)


def test_the_same_call_gives_back_what_is_finished(tmp_path: Path) -> None:
    first = train(tmp_path)
    again = train(tmp_path)
    assert (again.metrics, again.history) == (first.metrics, first.history)
    for ours, theirs in zip(again.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not (tmp_path / "own.1").exists()


def test_the_module_that_was_given_stays_as_it_was(tmp_path: Path) -> None:
    """A second run begins where the first one began."""
    given = net()
    one = train(tmp_path, model=given, name="one")
    two = train(tmp_path, model=given, name="two")
    assert_same_bits(one.directory, two.directory)
    for ours, theirs in zip(given.parameters(), net().parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.grad is None


def test_ctrl_c_saves_and_a_second_call_goes_on(tmp_path: Path) -> None:
    """Bit-equal to a run that was left alone."""
    calls = [0]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] == 14:
            signal.raise_signal(signal.SIGINT)
        return own_loss(outputs, targets)

    stopped = train(tmp_path, loss=loss, name="stopped")
    assert stopped.status == "preempted"
    assert 0 < stopped.step < 24
    assert train(tmp_path, loss=loss, name="stopped").status == "completed"
    train(tmp_path, loss=loss, name="whole")
    assert_same_bits(tmp_path / "stopped", tmp_path / "whole")
    assert comparable(tmp_path / "stopped") == comparable(tmp_path / "whole")


def not_finite(outputs: Tensor, targets: Tensor) -> Tensor:
    return own_loss(outputs, targets) * (float("nan") if outputs.requires_grad else 1.0)


def state_of_process() -> dict[str, Any]:
    log = logging.getLogger("convoy")
    return {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # type: ignore[index]
        "handlers": [signal.getsignal(n) for n in sorted(signal.valid_signals())],
        "log": (log.level, list(log.handlers)),
        "threads": torch.get_num_threads(),
        "matmul": torch.get_float32_matmul_precision(),
        "denormal": torch.full((), 1e-310, dtype=torch.float64).mul(1.0).item(),
        "path": list(sys.path),
        "environment": dict(os.environ),
        "output": (sys.stdout, sys.stderr),
        "gradients": torch.is_grad_enabled(),
        "running": sorted(thread.name for thread in threading.enumerate()),
        "group": torch.distributed.is_initialized(),
    }


@pytest.mark.parametrize("fails", [False, True])
def test_the_process_is_left_as_it_was_found(tmp_path: Path, fails: bool) -> None:
    options: dict[str, Any] = {
        "parallel": {"device": "cpu", "threads": 2},
        "precision": {"matmul": "high"},
    }
    before = state_of_process()
    with torch.no_grad():
        if fails:
            with pytest.raises(Diverged, match="not finite"):
                train(tmp_path, loss=not_finite, **options)
        else:
            assert train(tmp_path, **options).status == "completed"
    after = state_of_process()
    assert [name for name in before if before[name] != after[name]] == []


def test_a_failure_lets_go_of_the_directory(tmp_path: Path) -> None:
    with pytest.raises(Diverged) as kept:  # and a notebook keeps the last traceback
        train(tmp_path, loss=not_finite)
    assert kept.value.__traceback__ is not None
    assert train(tmp_path, checkpoint={"resume": "never"}).status == "completed"


def test_a_thread_trains_without_signals_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(train, tmp_path).result()
    assert run.status == "completed"
    assert "in a thread, where Python hears no signals" in caplog.text


def test_progress_is_plain_lines_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert any("  epoch 3  step 24  test accuracy" in line for line in lines)
    assert not any("\x1b" in line for line in lines)


def test_it_says_what_the_identity_knows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path)
    (line,) = [text for text in caplog.messages if text.startswith("given as objects")]
    assert "data.dataset given:TensorDataset@" in line
    assert "not initial weights" in line


def test_config_and_objects_mix_and_arguments_of_another_model_are_dropped(tmp_path: Path) -> None:
    """configs/mnist.yaml has `model.kwargs` of its own, and is not another recipe for that."""
    run = train(
        tmp_path,
        config="mnist",
        loss=None,
        lr=None,
        optimizer=None,
        epochs=None,
        **{"train": {"max_steps": 3}, "precision.dtype": "bf16"},
    )
    assert run.config.model.kwargs == {}
    assert (
        run.config.optimizer.lr
        == load_config(["--config=mnist"], prog="", description="").optimizer.lr
    )
    assert run.config.precision.dtype == "bf16"
    assert (run.step, run.config.train.max_steps) == (3, 3)


def test_classes_and_functions_of_modules_are_named_by_import_path(tmp_path: Path) -> None:
    """Then every other command can have them, too."""
    run = train(
        tmp_path,
        model={"name": Net, "kwargs": {"width": 8}},
        data=sets,
        optimizer=torch.optim.RMSprop,
        schedule={"name": "LambdaLR", "kwargs": {"lr_lambda": lambda step: 0.9**step}},
    )
    written = yaml.safe_load((run.directory / "config.yaml").read_text())
    module = "tests.support.own_objects"
    assert written["model"]["name"] == f"{module}:Net"
    assert written["model"]["kwargs"] == {"width": 8}
    assert written["data"]["dataset"] == f"{module}:sets"
    assert written["task"]["loss"] == f"{module}:own_loss"
    assert written["optimizer"]["name"] == "torch.optim.rmsprop:RMSprop"
    assert written["schedule"]["kwargs"]["lr_lambda"].startswith("given:lambda@")
    assert run.history[1]["train/lr"] == pytest.approx(0.009)


def test_objects_among_the_arguments_of_a_model_arrive(tmp_path: Path) -> None:
    def make(activation: type[nn.Module]) -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), activation(), nn.Linear(8, 3))

    run = train(tmp_path, model={"name": make, "kwargs": {"activation": nn.GELU}})
    assert isinstance(run.model[1], nn.GELU)  # type: ignore[index]


@pytest.mark.parametrize(
    ("loss", "task", "name"),
    [
        (F.mse_loss, "regression", "torch.nn.functional:mse_loss"),
        (nn.HuberLoss(delta=0.5), "regression", "given:HuberLoss@"),
        (None, "regression", None),
    ],
)
def test_the_task_goes_with_a_loss_of_torch(
    tmp_path: Path, loss: Any, task: str, name: str | None
) -> None:
    inputs = torch.randn(40, 5)
    part = TensorDataset(inputs, inputs.sum(1))
    run = train(
        tmp_path,
        model=nn.Linear(5, 1),
        data=(part, part),
        loss=loss,
        task=None if loss is not None else "regression",
    )
    assert run.config.task.name == task
    assert (run.config.task.loss or "").startswith(name or "")
    assert {"mae", "r2"} <= run.metrics.keys()


def test_any_targets_go_with_a_loss_of_ones_own(tmp_path: Path) -> None:
    """Classes of several places of a sample: no classification of samples."""
    inputs = torch.randn(40, 5)
    part = [(sample, (sample[:2] > 0).long()) for sample in inputs]
    model = nn.Sequential(nn.Linear(5, 6), nn.Unflatten(1, (3, 2)))
    run = train(tmp_path, model=model, data=(part, part), loss=F.cross_entropy)
    assert (run.config.task.name, run.config.task.loss) == (
        "loss",
        "torch.nn.functional:cross_entropy",
    )
    assert run.metrics["loss"] < run.history[0]["train/loss"]


@pytest.mark.parametrize("kind", ["a list", "a part", "tensors"])
def test_classes_are_counted_where_labels_are_known(tmp_path: Path, kind: str) -> None:
    whole, _ = sets()
    part: Any = {
        "a list": [(inputs, int(label)) for inputs, label in whole],
        "a part": Subset(whole, (whole.tensors[1] < 2).nonzero().flatten().tolist()),
        "tensors": whole,
    }[kind]
    run = train(tmp_path, data=(part, part), loss=F.cross_entropy, **{"train.max_steps": 2})
    facts = json.loads((run.directory / "model.json").read_text())
    assert facts["num_classes"] == 3
    assert run.config.task.loss is None, "it is a classification's own"


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


def test_data_sets_may_have_names(tmp_path: Path) -> None:
    """As Hugging Face's DatasetDict has them; other keys of the group are given with dots."""
    train_set, test_set = sets()
    named = {"train": train_set, "test": test_set}
    run = train(tmp_path, data=named, **{"data.drop_last": True})
    assert run.metrics["count"] == len(test_set)
    assert run.step == 3 * (113 // 16)
    assert train(tmp_path, data=named, **{"data.drop_last": True}).metrics == run.metrics


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"epoch": 3}, "unknown config key 'epoch' in fit(). Did you mean 'epochs'?"),
        ({"train": {"epoch": 3}}, "Did you mean 'train.epochs'?"),
        ({"train.clip_nrm": 3}, "Did you mean 'train.clip_norm'?"),
        ({"train": {"epochs": 4}}, "train.epochs: given 4, expected one value: it is given twice"),
        ({"lr": "fast"}, "optimizer.lr: given 'fast', expected a number"),
        ({"lr": -1}, "optimizer.lr: given -1.0, expected a number above 0"),
        ({"optimizer": "adanw"}, "Did you mean 'adamw'?"),
        ({"model": None}, "model of fit(): expected one: model=Net()"),
        ({"data": None}, "data of fit(): expected one: data=(train_set, test_set)"),
        ({"model": 3.5}, "model.name"),
        ({"model": torch.zeros(3)}, "model.name: given 'Tensor', expected a name, an import path"),
        ({"data": (Stream(), Stream())}, "a stream"),
        ({"data": ((torch.rand(9, 5), torch.arange(9)),) * 2}, "TensorDataset(inputs, targets)"),
        ({"data": (np.ones((9, 5)), np.ones(9))}, "given 'inputs beside targets'"),
        ({"data": sets()[0]}, "given 'one data set, a TensorDataset', expected (train, test)"),
        ({"data": iter([])}, "given 'list_iterator, a stream'"),
        (
            {
                "data": (TensorDataset(torch.rand(9, 5), torch.arange(1, 10) % 4 - 1),) * 2,
                "loss": None,
            },
            "train sample 3: label: given -1, expected 0 to 2, for 3 classes",
        ),
        ({"data": DataLoader(sets()[0])}, "Order, batches and workers are the run's"),
        ({"optimizer": torch.optim.Adam(net().parameters())}, "optimizer=torch.optim.Adam, lr="),
        ({"model": torch.compile(net())}, "given 'a OptimizedModule', expected the module inside"),
        ({"dry_run": {"world_size": 8}}, "dry_run.world_size"),
        ({"train": 3}, "train: given 3, expected a mapping of keys under it"),
        ({"config": "nowhere.yaml"}, "given 'nowhere.yaml', expected a YAML file"),
    ],
)
def test_bad_input_is_raised_and_nothing_is_written(
    tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as raised:
        train(tmp_path, **more)
    assert message in str(raised.value)
    assert not (tmp_path / "own").exists()


def test_ranks_are_left_to_it(tmp_path: Path) -> None:
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with pytest.raises(InputError, match="leave init_process_group out"):
            train(tmp_path)
    finally:
        torch.distributed.destroy_process_group()
