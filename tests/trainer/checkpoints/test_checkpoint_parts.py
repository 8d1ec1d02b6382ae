"""A checkpoint of which every rank writes a part: whole or not there, and read by anybody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from configs.errors import InputError
from tests.support.checkpoints import save, sign
from tests.support.stored_parts import cut, save_in_parts, state
from trainer.checkpoints.checkpoint import Refused, load_checkpoint, verify_checkpoint
from trainer.checkpoints.checkpoint_folder import Good, newest_good
from trainer.checkpoints.checkpoint_parts import StoredTensor, open_parts
from trainer.checkpoints.saved_state import check_optimizer
from trainer.engines.dtensor import whole


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_what_ranks_wrote_is_read_whole_and_by_rows(tmp_path: Path, count: int) -> None:
    """Law: as many bits come back, on any number of ranks, in every type."""
    path = save_in_parts(tmp_path, 4, value=2.0, parts=cut(state(2.0), count))
    manifest = verify_checkpoint(path)
    assert (manifest["step"], manifest["format"]) == (4, 2)
    weights, trainer = load_checkpoint(path)
    assert (trainer["progress"], float(trainer["optimizer"]["state"][0]["step"])) == (
        {"step": 4},
        4.0,
    )
    found = {f"model/{name}": value for name, value in weights.items()}
    found |= {f"ema/{name}": value for name, value in trainer["ema"].items()}
    found["optimizer/0/exp_avg"] = trainer["optimizer"]["state"][0]["exp_avg"]
    expected = state(2.0)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype is value.dtype
        assert torch.equal(found[name], value)
    lazily, rest = load_checkpoint(path, by_rows=True)
    bias = lazily["layer.bias"]
    assert isinstance(bias, StoredTensor)
    for start in range(6):
        for stop in range(start, 6):
            assert torch.equal(bias.rows(start, stop), expected["model/layer.bias"][start:stop])
    assert torch.equal(whole(lazily["count"]), expected["model/count"])
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(5, 2))])
    with pytest.raises(ValueError, match=r"exp_avg of trainer.pt is '\(4, 2\)', not shape"):
        check_optimizer(rest["optimizer"], optimizer)


def test_rows_of_no_elements_and_of_empty_tensors(tmp_path: Path) -> None:
    tensors = {"model/empty": torch.zeros(0, 3), "model/thin": torch.zeros(4, 0)}
    path = save_in_parts(tmp_path, 1, parts=cut(tensors, 2))
    weights, _ = load_checkpoint(path)
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        "empty": (0, 3),
        "thin": (4, 0),
    }


SECOND = "part_00001_of_00003.safetensors"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: (path / SECOND).unlink(), f"{SECOND}: No such file"),
        (lambda path: (path / SECOND).write_bytes(b"x"), f"{SECOND} has 1 bytes instead of"),
        (lambda path: flip_last_byte(path / SECOND), f"{SECOND} has another SHA-256"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
    ],
)
def test_a_part_that_is_not_as_it_was_written_is_named_and_the_one_before_is_taken(
    tmp_path: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    before = save(tmp_path, 1)
    path = save_in_parts(tmp_path, 2)
    assert newest_good(tmp_path) == (Good.at(path), [])
    spoil(path)
    with pytest.raises(Refused, match=reason):
        verify_checkpoint(path)
    found, rejected = newest_good(tmp_path)
    assert found == Good.at(before)
    assert len(rejected) == 1
    assert reason in rejected[0]


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_parts_of_another_number_of_ranks_are_refused(tmp_path: Path) -> None:
    """Two of three parts, their digests made right, are no checkpoint."""
    path = save_in_parts(tmp_path, 2)
    manifest = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(manifest.replace("00001_of", "00007_of"))
    (path / SECOND).rename(path / SECOND.replace("00001", "00007"))
    sign(path)
    with pytest.raises(Refused, match="is not as it was written"):
        verify_checkpoint(path)


@pytest.mark.parametrize("start", [0, 3, -1, 2.0, 2**70])
def test_parts_that_leave_rows_out_or_give_them_twice_are_refused(
    tmp_path: Path, start: int
) -> None:
    parts = cut(state(), 3)
    parts[1].layout["model/layer.weight"] = ([4, 2], start)
    path = save_in_parts(tmp_path, 2, parts=parts)
    verify_checkpoint(path)
    with pytest.raises(InputError, match=r"layer.weight"):
        load_checkpoint(path)


def test_a_shape_that_is_not_that_of_the_rows_is_refused(tmp_path: Path) -> None:
    parts = cut(state(), 3)
    for part in parts:
        part.layout = {name: ([*shape[:1], 9], row) for name, (shape, row) in part.layout.items()}
    path = save_in_parts(tmp_path, 2, parts=parts)
    with pytest.raises(ValueError, match="has no shape"):
        open_parts(sorted(path.glob("part_*")))


def test_a_rank_that_cannot_write_fails_the_checkpoint_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others' parts are gone as well, and what was there before is as it was."""
    from trainer.checkpoints import checkpoint_parts as module

    before = save_in_parts(tmp_path, 1)
    write = module._write

    def full(file: object, part: module.Part, digest: object) -> None:
        if part.rank == 1:
            raise OSError(28, "No space left on device")
        write(file, part, digest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(OSError, match=f"rank 1 could not write {SECOND}: No space left"):
        save_in_parts(tmp_path, 2, threads=1)  # a rank that still writes may leave its folder
    assert newest_good(tmp_path) == (Good.at(before), [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", before.name]


def test_a_rank_that_never_writes_is_named(tmp_path: Path) -> None:
    parts = cut(state(), 3)
    with pytest.raises(OSError, match=r"rank 2 has not written its part in 0.1 s"):
        save_in_parts(tmp_path, 2, parts=parts[:2], seconds=0.1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model.safetensors", "part_00003_of_00004.safetensors"])
def test_a_file_that_the_manifest_does_not_name_is_not_read(tmp_path: Path, name: str) -> None:
    """Whoever exports weights into a checkpoint must not lose its average and optimizer state."""
    path = save_in_parts(tmp_path, 2, value=3.0)
    before, trainer = load_checkpoint(path)
    save_file({"layer.bias": torch.zeros(5)}, path / name)
    verify_checkpoint(path)
    weights, rest = load_checkpoint(path)
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[key], before[key]) for key in before)
    assert rest["ema"].keys() == trainer["ema"].keys()
