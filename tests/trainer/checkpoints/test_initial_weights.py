"""`model.weights`: every kind of file, strict and partial loads, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from configs.errors import InputError
from configs.schema_model import ModelConfig
from tests.support.odd_networks import Base
from trainer.checkpoints.initial_weights import load_weights, read_weights, weights_digest


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Base()


def state(seed: int) -> dict[str, torch.Tensor]:
    return dict(net(seed).state_dict())


WRAPPED: list[Any] = [
    lambda state: state,
    lambda state: {"state_dict": state, "epoch": 3},
    lambda state: {"model": {"state_dict": state}},
    lambda state: {f"module.{name}": value for name, value in state.items()},
    lambda state: {f"module._orig_mod.{name}": value for name, value in state.items()},
    lambda state: state | {"extra": {"lr": 0.1}},
]


@pytest.mark.parametrize("wrap", WRAPPED)
def test_a_state_dict_is_found_however_it_was_saved(wrap: Any, tmp_path: Path) -> None:
    torch.save(wrap(state(1)), tmp_path / "w.pt")
    found = read_weights(str(tmp_path / "w.pt"))
    assert weights_digest(found) == weights_digest(state(1))


def test_the_digest_is_of_the_weights_and_not_of_their_file(tmp_path: Path) -> None:
    torch.save(state(1), tmp_path / "w.pt")
    save_file(state(1), tmp_path / "model.safetensors")
    same = {weights_digest(read_weights(str(p))) for p in (tmp_path / "w.pt", tmp_path)}
    assert same == {weights_digest(state(1))}
    moved = state(1)
    moved["a.bias"][3] += 1e-7
    assert weights_digest(moved) not in same
    renamed = {name.replace("a.", "d."): value for name, value in state(1).items()}
    assert weights_digest(renamed) not in same


def test_a_file_that_would_run_code_or_is_damaged_is_refused(tmp_path: Path) -> None:
    torch.save({"w": Path("x")}, tmp_path / "code.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    torch.save({"epoch": 1}, tmp_path / "none.pt")
    (tmp_path / "empty").mkdir()
    for name in ("code.pt", "cut.safetensors", "none.pt", "empty", "missing.pt"):
        with pytest.raises(InputError, match=r"model\.weights: given .* a file of safetensors"):
            read_weights(str(tmp_path / name))


def load(weights: dict[str, torch.Tensor], **options: Any) -> tuple[nn.Module, str]:
    model = net(2)
    return model, load_weights(model, weights, ModelConfig(weights="w.pt", **options))


def test_all_names_are_loaded_and_counted() -> None:
    model, line = load(state(1))
    assert line == "weights from w.pt: 6 loaded, 0 missing, 0 left over"
    assert weights_digest(dict(model.state_dict())) == weights_digest(state(1))


def other_head() -> dict[str, torch.Tensor]:
    """Two more classes, a norm that the model lacks, and no bias for `b`."""
    weights = state(1) | {"c.weight": torch.ones(6, 16), "c.bias": torch.ones(6)}
    weights["norm.weight"] = torch.ones(3)
    del weights["b.bias"]
    return weights


def test_what_does_not_fit_is_named_with_the_way_to_leave_it_out() -> None:
    model = net(2)
    with pytest.raises(InputError) as caught:
        load_weights(model, other_head(), ModelConfig(weights="w.pt"))
    message = str(caught.value)
    assert "3 loaded, 1 missing (b.bias), 1 left over (norm.weight), 2 of another shape" in message
    assert "c.weight (6, 16) for (4, 16)" in message
    assert "--model.weights_partial '[c.*, b.*, norm.*]'" in message
    assert weights_digest(dict(model.state_dict())) == weights_digest(state(2)), "nothing is loaded"


def test_what_is_left_out_by_name_keeps_what_was_drawn() -> None:
    model, line = load(other_head(), weights_partial=["c", "b.bias", "norm.*"])
    assert line.startswith("weights from w.pt: 3 loaded, 1 missing (b.bias), 1 left over")
    assert line.endswith("left out as model.weights_partial says: c, b.bias, norm.*")
    found, drawn, given = model.state_dict(), state(2), state(1)
    for name in ("a.weight", "a.bias", "b.weight"):
        assert torch.equal(found[name], given[name])
    for name in ("c.weight", "c.bias", "b.bias"):
        assert torch.equal(found[name], drawn[name])
    with pytest.raises(InputError, match=r"norm\.weight"):
        load(other_head(), weights_partial=["c", "b.bias"])
    with pytest.raises(InputError, match="weights_partial: given 'head'"):
        load(state(1), weights_partial=["head"])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.head.weight = self.embed.weight


def test_a_tied_weight_may_have_one_name_in_the_file() -> None:
    """Law: as safetensors keep it."""
    model, wanted = Tied(), torch.full((3, 3), 2.0)
    line = load_weights(model, {"embed.weight": wanted}, ModelConfig(weights="w"))
    assert line == "weights from w: 1 loaded, 0 missing, 0 left over"
    assert torch.equal(model.head.weight, wanted)


def test_a_part_of_a_checkpoint_is_refused_with_the_name_of_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "step_00000001" / "part_00000_of_00002.safetensors"
    with pytest.raises(InputError, match=f"Name the checkpoint: --model.weights {path.parent}"):
        read_weights(str(path))
