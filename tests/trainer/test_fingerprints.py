"""What makes two objects the same to a run: what is found again at the next start, and no more."""

from __future__ import annotations

import functools
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from configs.errors import InputError
from tests.support.own_objects import Net, net, own_loss, sets, train
from trainer.fingerprints import (
    digest_of,
    digest_of_data,
    digest_of_model,
    digest_of_weights,
    import_path,
)


def program(text: str, **names: Any) -> ModuleType:
    """A program as its user runs it: what it defines cannot be imported."""
    module = ModuleType("__main__")
    vars(module).update(names)
    exec(compile(textwrap.dedent(text), "mine.py", "exec"), vars(module))
    return module


LOSS = """
    import torch.nn.functional as F
    SCALE = 2.0
    seen = []

    def scaled(value):
        return value * SCALE

    def loss(outputs, targets):
        seen.append(1)
        return scaled(F.cross_entropy(outputs, targets, reduction="none"))
"""


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("", "", True),
        ("seen.append", "# a comment\n        seen.append", True),
        ("seen = []", "seen = [1, 2]", True),
        ("SCALE = 2.0", "SCALE = 3.0", False),
        ("value * SCALE", "value + SCALE", False),
        ('reduction="none"', 'reduction="none", label_smoothing=0.1', False),
    ],
)
def test_a_function_is_its_code_and_what_it_calls(old: str, new: str, same: bool) -> None:
    """Of the same program: constants and functions of its own, not lists that may grow."""
    first, second = program(LOSS).loss, program(LOSS.replace(old, new)).loss
    assert (digest_of(first) == digest_of(second)) is same


NET = """
    from torch import nn

    class Block(nn.Module):
        def forward(self, x):
            return x.relu()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)
            self.drop = nn.Dropout(0.1)
            self.block = Block()
            self.fn = lambda x: x + 1

        def forward(self, x):
            return self.block(self.drop(self.layer(self.fn(x))))
"""


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("", "", True),
        ("nn.Linear(3, 4)", "nn.Linear(3, 5)", False),
        ("nn.Dropout(0.1)", "nn.Dropout(0.2)", False),
        ("x.relu()", "x.tanh()", False),
        ("x + 1", "x + 2", False),
        ("self.drop(self.layer", "self.layer(self.drop", False),
    ],
)
def test_a_module_is_its_code_its_options_and_its_shapes(old: str, new: str, same: bool) -> None:
    """Its weights are drawn: two of one class have one digest, and another one of their weights."""
    first, second = program(NET).Net(), program(NET.replace(old, new)).Net()
    assert (digest_of_model(first) == digest_of_model(second)) is same
    assert digest_of_weights(first) != digest_of_weights(second)


def test_the_weights_of_classes_in_a_loss_count() -> None:
    digests = {
        digest_of(nn.CrossEntropyLoss(weight=torch.tensor(weight), label_smoothing=smoothing))
        for weight in ([1.0, 2.0], [1.0, 3.0])
        for smoothing in (0.0, 0.1)
    }
    assert len(digests) == 4
    assert digest_of(functools.partial(own_loss, a=1)) != digest_of(
        functools.partial(own_loss, a=2)
    )


class Drawn(Dataset[Any]):
    """Samples that are drawn anew each time."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return torch.rand(3), index


def test_data_are_their_lengths_and_some_samples() -> None:
    train_set, test_set = sets()
    digest = digest_of_data((train_set, test_set))
    assert digest == digest_of_data(sets())
    assert digest != digest_of_data(sets(seed=1))
    assert digest != digest_of_data((train_set, Subset(test_set, range(30))))
    split, other = (Subset(train_set, torch.randperm(113).tolist()[:50]) for _ in range(2))
    assert digest_of_data([split]) != digest_of_data([other]), "another split is other data"
    assert digest_of_data([Drawn(9)]) == digest_of_data([Drawn(9)])
    assert digest_of_data([Drawn(9)]) != digest_of_data([Drawn(8)])


def test_looking_at_data_draws_nothing() -> None:
    before = torch.get_rng_state()
    digest_of_data([Drawn(9)])
    assert torch.equal(before, torch.get_rng_state())


def test_only_what_another_process_finds_has_an_import_path() -> None:
    assert import_path(Net) == "tests.support.own_objects:Net"
    assert import_path(torch.optim.AdamW) == "torch.optim.adamw:AdamW"
    for unreachable in (program(LOSS).loss, lambda: 0, net(), functools.partial(net)):
        assert import_path(unreachable) is None


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"data": sets(seed=1)}, "data.dataset 'given:TensorDataset@"),
        ({"model": net(width=17)}, "model.name 'given:Net@"),
        ({"loss": program(LOSS).loss}, "task.loss 'tests.support.own_objects:own_loss', now"),
        ({"lr": 0.02}, "optimizer.lr 0.01, now 0.02"),
    ],
)
def test_an_unfinished_run_goes_on_with_the_same_objects_only(
    tmp_path: Path, change: dict[str, Any], key: str
) -> None:
    train(tmp_path, **{"train.max_steps": 3})
    (tmp_path / "own/summary.json").unlink()  # as after a kill
    with pytest.raises(InputError) as refused:
        train(tmp_path, **{"train.max_steps": 5}, **change)
    assert key in str(refused.value)


def test_a_run_goes_on_with_its_own_weights_and_says_that_others_came(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A program without a seed makes a network of other weights at every start."""
    for start, steps in enumerate((3, 5, 7)):
        caplog.clear()
        run = train(tmp_path, model=net(seed=start > 1), **{"train.max_steps": steps})
        assert run.step == steps
        assert ("came with other weights" in caplog.text) is (start > 1)
    assert len([r for r in run.history if "train/loss" in r]) == 7


def test_objects_without_a_known_difference_are_told_apart(tmp_path: Path) -> None:
    class Share:
        width, higher_is_better = 1, True

        def __init__(self, names: list[str]) -> None:
            self.sums = lambda outputs, targets: (targets == 0).sum().reshape(1)
            self.compute = lambda sums, count: {names[0]: sums[0] / count}

    run = train(tmp_path, metrics=[Share(["one"]), Share(["two"])])
    assert run.metrics["one"] == run.metrics["two"] > 0
