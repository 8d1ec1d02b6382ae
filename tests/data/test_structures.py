"""Structures of tensors: what is a tensor is changed, what is not stays."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from data.collate import pad, stack
from data.facts import InputFacts
from data.normalize import Normalize
from data.samples import ArrayDataset
from data.structures import map_tensors, outline, split, tensors

CPU = torch.device("cpu")


@dataclass
class Record:
    first: Tensor
    text: str


class Pair(NamedTuple):
    first: Tensor
    target: Tensor


class Output(OrderedDict[str, Any]):
    """A mapping of a type of its own."""


ONE = torch.ones(2, 3)


@pytest.mark.parametrize(
    "structure",
    [
        ONE,
        (ONE, ONE),
        [ONE, "word", 3],
        {"a": ONE, "b": {"c": (ONE, None)}},
        Record(ONE, "word"),
        Pair(ONE, ONE),
        Output(a=ONE, b=[ONE]),
    ],
)
def test_every_tensor_is_changed_and_the_type_stays(structure: Any) -> None:
    changed = map_tensors(lambda tensor: tensor + 1, structure)
    assert type(changed) is type(structure)
    assert outline(changed) == outline(structure)
    assert all(torch.equal(tensor, ONE + 1) for tensor in tensors(changed))
    assert all(torch.equal(tensor, ONE) for tensor in tensors(structure))
    assert len(list(tensors(changed))) == len(list(tensors(structure))) > 0


def test_what_is_learned_is_found() -> None:
    """Law: the last of a tuple, what a name says, or the whole."""
    x, y, z = torch.zeros(1), torch.ones(1), torch.ones(1) * 2
    assert split((x, y)) == (x, y)
    assert split([x, y, z]) == ((x, y), z)
    assert split((x,)) == (x, x)
    assert split(x) == (x, x)
    named = {"ids": x, "labels": y}
    assert split(named) == (named, y)
    assert split(Pair(x, y))[1] is y
    assert split({"ids": x})[1] == {"ids": x}


def test_whole_numbers_stay_whole_numbers() -> None:
    """Law: two ids that are neighbours above 2**24 stay apart; pictures and floats are changed."""
    normalize = Normalize(InputFacts(input_shape=(2,), num_classes=0), CPU)
    ids = torch.tensor([[2**24 + 1, 2**24 + 3]])
    assert torch.equal(normalize(ids), ids)
    found = normalize({"ids": ids, "values": ids.double(), "mask": ids > 0})
    assert torch.equal(found["ids"], ids)
    assert found["values"].dtype is torch.float32
    assert found["mask"].dtype is torch.bool
    picture = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    assert torch.equal(normalize((picture, ids))[0], torch.ones(1, 3, 2, 2))
    measured = Normalize(InputFacts(input_shape=(2,), num_classes=0, mean=(3.0,)), CPU)
    assert torch.equal(measured(torch.tensor([[3, 4]])), torch.tensor([[0.0, 1.0]]))


def test_samples_of_several_lengths_are_padded_to_the_longest() -> None:
    short, long = torch.tensor([5]), torch.tensor([6, 7, 8])
    batch = pad([{"ids": short, "labels": short, "n": 1}, {"ids": long, "labels": long, "n": 2}])
    assert batch["ids"].tolist() == [[5, 0, 0], [6, 7, 8]]
    assert batch["labels"].tolist() == [[5, -100, -100], [6, 7, 8]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch["n"].tolist() == [1, 2]
    (inputs, mask), targets = pad([(short, 0), (long, 1)])
    assert inputs.tolist() == batch["ids"].tolist()
    assert mask.tolist() == [[True, False, False], [True, True, True]]
    assert targets.tolist() == [0, 1]


def test_arrays_are_gathered_as_structures() -> None:
    """Law: all tensors alike, in the order asked for."""
    data = ArrayDataset({"a": torch.arange(5), "b": torch.arange(10).view(5, 2)}, torch.arange(5))
    inputs, targets = data.gather(torch.tensor([4, 1]))
    assert inputs["a"].tolist() == targets.tolist() == [4, 1]
    assert inputs["b"].tolist() == [[8, 9], [2, 3]]
    assert outline(data[2]) == outline(stack([data[2]])).replace("(1, 2)", "(2,)").replace(
        "(1,)", "()"
    ).replace("[", "(")
    with pytest.raises(AssertionError):
        ArrayDataset(torch.zeros(3), torch.zeros(4))
