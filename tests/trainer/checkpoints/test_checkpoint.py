"""Checkpoints are whole or not there, and one that was touched is not believed."""

from __future__ import annotations

import builtins
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from configs.errors import InputError
from trainer.checkpoints.checkpoint import (
    Position,
    Refused,
    list_checkpoints,
    load_checkpoint,
    newest_good,
    save_checkpoint,
    set_aside_newer,
    verify_checkpoint,
)

FILES = ("model.safetensors", "trainer.pt", "manifest.json")


def weights(value: float = 0.0) -> dict[str, Tensor]:
    return {"layer.weight": torch.full((3, 2), value), "layer.bias": torch.arange(3.0)}


def position(step: int, score: float | None = None) -> Position:
    return Position(
        step=step,
        score=score,
        epoch=step // 4,
        position=step * 16,
        world_size=2,
        config_digest="0" * 64,
        identity={"optimizer.lr": 0.1, "optimizer.betas": [0.9, 0.999], "seed": 0},
    )


def save(
    folder: Path, step: int, *, value: float = 0.0, keep: int = 3, is_best: bool = False
) -> Path:
    return save_checkpoint(
        folder,
        weights(value),
        {"progress": {"step": step}, "ema": torch.ones(2)},
        position(step),
        keep=keep,
        is_best=is_best,
    )


def steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in list_checkpoints(folder)]


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good checkpoint, to be put back by whoever changes it."""
    return save(tmp_path_factory.mktemp("pristine"), 10)


@pytest.fixture
def good(pristine: Path, tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be damaged."""
    return Path(shutil.copytree(pristine, tmp_path / pristine.name))


def test_what_was_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    saved = {
        "matrix": torch.randn(4, 3),
        "half": torch.randn(5).bfloat16(),
        "count": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "odd": torch.tensor([float("inf"), -0.0, 1e-45]),
    }
    trainer = {
        "progress": {"step": 5, "loss": 0.1, "best": None, "due": False},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]},
        "ranks": [{"rng": torch.arange(9, dtype=torch.uint8)}],
    }
    path = save_checkpoint(tmp_path, saved, trainer, position(5), keep=3, is_best=False)
    found, state = load_checkpoint(path)
    assert found.keys() == saved.keys()
    for name, value in saved.items():
        assert found[name].dtype is value.dtype
        assert found[name].shape == value.shape
        mine, theirs = (part.reshape(-1).view(torch.uint8) for part in (found[name], value))
        assert torch.equal(mine, theirs)
    assert state["progress"] == trainer["progress"]
    assert torch.equal(state["optimizer"]["state"][0]["step"], torch.tensor(3.0))
    assert torch.equal(state["ranks"][0]["rng"], trainer["ranks"][0]["rng"])


def test_the_files_are_what_anybody_can_read(tmp_path: Path) -> None:
    path = save(tmp_path, 12, value=2.5)
    assert path == tmp_path / "step_00000012"
    assert sorted(p.name for p in path.iterdir()) == sorted(FILES)
    assert safetensors.torch.load_file(path / FILES[0])["layer.weight"][0, 0] == 2.5
    assert torch.load(path / FILES[1], weights_only=True)["progress"] == {"step": 12}


def test_the_manifest_says_what_the_files_are_and_where_the_run_stood(tmp_path: Path) -> None:
    path = save(tmp_path, 12)
    manifest = verify_checkpoint(path)
    assert manifest == json.loads((path / "manifest.json").read_text())
    assert {key: manifest[key] for key in asdict(position(12))} == asdict(position(12))
    assert manifest["torch"] == torch.__version__
    assert {name: facts["bytes"] for name, facts in manifest["files"].items()} == {
        name: (path / name).stat().st_size for name in FILES[:2]
    }


@pytest.mark.parametrize("name", FILES[:2])
def test_every_flipped_byte_is_refused(pristine: Path, name: str) -> None:
    file = pristine / name
    whole = file.read_bytes()
    try:
        for at in range(len(whole)):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
            with pytest.raises(Refused, match=f"{name}.*SHA-256"):
                verify_checkpoint(pristine)
    finally:
        file.write_bytes(whole)
    verify_checkpoint(pristine)


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_refused(pristine: Path, name: str) -> None:
    file = pristine / name
    whole = file.read_bytes()
    try:
        for length in range(len(whole.rstrip())):
            file.write_bytes(whole[:length])
            with pytest.raises(Refused, match=name):
                verify_checkpoint(pristine)
    finally:
        file.write_bytes(whole)
    verify_checkpoint(pristine)


@pytest.mark.parametrize("name", FILES)
def test_appended_bytes_are_refused(good: Path, name: str) -> None:
    with (good / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(Refused, match=name):
        verify_checkpoint(good)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_by_name(good: Path, name: str) -> None:
    (good / name).unlink()
    with pytest.raises(Refused, match=name):
        verify_checkpoint(good)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_the_place_of_a_file_is_refused(good: Path, name: str) -> None:
    (good / name).unlink()
    (good / name).mkdir()
    with pytest.raises(Refused, match=name):
        verify_checkpoint(good)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"3", b'"x"', b"{}", b"\xff\xfe\x00", b"\0" * 64, b'{"files": {}}'],
)
def test_a_garbled_manifest_is_refused(good: Path, text: bytes) -> None:
    (good / "manifest.json").write_bytes(text)
    with pytest.raises(Refused, match=r"manifest\.json"):
        verify_checkpoint(good)


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest.pop(key)


@pytest.mark.parametrize(
    "change",
    [
        *[without(key) for key in ("format", "files", *asdict(position(0)))],
        lambda m: m.update(format=2),
        lambda m: m.update(format=None),
        lambda m: m.update(files=[]),
        lambda m: m.update(files={}),
        lambda m: m["files"].pop("trainer.pt"),
        lambda m: m["files"].update({"model.safetensors": None}),
        lambda m: m["files"].update({"model.safetensors": {}}),
        lambda m: m["files"]["trainer.pt"].pop("bytes"),
        lambda m: m["files"]["trainer.pt"].pop("sha256"),
        lambda m: m["files"]["trainer.pt"].update(sha256="0" * 64),
        lambda m: m["files"].update({"more.bin": {"bytes": 1, "sha256": "0"}}),
    ],
)
def test_a_manifest_that_does_not_say_what_it_should_is_refused(
    good: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    path = good / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(Refused):
        verify_checkpoint(good)


@pytest.mark.parametrize("step", [11, "10", None, -10])
def test_a_manifest_of_another_step_than_its_directory_is_refused(good: Path, step: object) -> None:
    """The one number in the manifest that decides where a run continues."""
    path = good / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "step": step}))
    with pytest.raises(Refused):
        verify_checkpoint(good)


def damage(path: Path) -> None:
    with (path / FILES[0]).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xaa")


def test_the_newest_good_one_is_found_and_the_rejected_ones_are_named(tmp_path: Path) -> None:
    paths = [save(tmp_path, step, keep=9) for step in (1, 2, 3, 4)]
    assert newest_good(tmp_path) == (paths[3], [])
    damage(paths[3])
    (paths[2] / "trainer.pt").unlink()
    chosen, rejected = newest_good(tmp_path)
    assert chosen == paths[1]
    assert len(rejected) == 2
    assert str(paths[3]) in rejected[0]
    assert "SHA-256" in rejected[0]
    assert str(paths[2]) in rejected[1]
    assert "trainer.pt" in rejected[1]


def test_without_a_good_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert newest_good(tmp_path) == (None, [])
    assert newest_good(tmp_path / "absent") == (None, [])
    path = save(tmp_path, 1)
    damage(path)
    chosen, rejected = newest_good(tmp_path)
    assert chosen is None
    assert len(rejected) == 1


def test_only_checkpoints_are_listed_and_in_the_order_of_steps(tmp_path: Path) -> None:
    for step in (100_000_000, 9, 99_999_999):
        save(tmp_path, step, keep=9)
    for name in (".writing-step_00000011", ".old-step_00000009", "step_11", "step_x", "rejected"):
        (tmp_path / name).mkdir()
    assert steps(tmp_path) == [9, 99_999_999, 100_000_000]


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path, step, keep=2, is_best=step == 2)
        assert step in steps(tmp_path)
    assert steps(tmp_path) == [2, 5, 6]
    save(tmp_path, 7, keep=2, is_best=True)
    assert steps(tmp_path) == [6, 7]  # the old best is a checkpoint like any other
    save(tmp_path, 8, keep=2)
    save(tmp_path, 9, keep=2)
    assert steps(tmp_path) == [7, 8, 9]


def test_links_are_relative_and_lead_to_the_latest_and_the_best(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step, is_best in ((1, True), (2, False), (3, True), (4, False)):
        save(folder, step, is_best=is_best)
    assert os.readlink(folder / "latest") == "step_00000004"
    assert os.readlink(folder / "best") == "step_00000003"
    moved = folder.rename(tmp_path / "elsewhere")
    assert verify_checkpoint(moved / "latest")["step"] == 4
    assert verify_checkpoint(moved / "best")["step"] == 3


def test_the_best_is_nowhere_before_there_is_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert not (tmp_path / "best").is_symlink()


def test_the_same_step_saved_twice_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2, value=1.0)
    path = save(tmp_path, 2, value=2.0)
    assert steps(tmp_path) == [1, 2]
    verify_checkpoint(path)
    assert load_checkpoint(path)[0]["layer.weight"][0, 0] == 2.0
    assert {p.name for p in tmp_path.iterdir()} == {"step_00000001", "step_00000002", "latest"}


def test_what_a_killed_save_left_behind_is_in_nobodys_way(tmp_path: Path) -> None:
    first = save(tmp_path, 1)
    leftover = tmp_path / ".writing-step_00000002"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    (leftover / "a folder").mkdir()
    assert newest_good(tmp_path) == (first, [])
    verify_checkpoint(save(tmp_path, 2))
    assert {p.name for p in tmp_path.iterdir()} == {"step_00000001", "step_00000002", "latest"}


def fail_on_rename(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Publishing the finished directory fails, however it is renamed."""
    for name in ("rename", "replace"):
        real = getattr(os, name)

        def renamed(source: Any, target: Any, *, real: Any = real, **keys: Any) -> None:
            if Path(source).name.startswith(".writing"):
                raise error
            real(source, target, **keys)

        monkeypatch.setattr(os, name, renamed)


def fail_in(module: object, name: str) -> Callable[[pytest.MonkeyPatch, BaseException], None]:
    def install(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        def fails(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(module, name, fails)

    return install


CRASHES = {
    "weights": fail_in(safetensors.torch, "save_file"),
    "trainer": fail_in(torch, "save"),
    "manifest": fail_in(json, "dumps"),
    "flush": fail_in(os, "fsync"),
    "rename": fail_on_rename,
}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", [2, 3], ids=["same step", "new step"])
@pytest.mark.parametrize("crash", list(CRASHES))
def test_a_save_that_fails_leaves_everything_as_it_was(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    crash: str,
    step: int,
    error: BaseException,
) -> None:
    save(tmp_path, 1, is_best=True)
    save(tmp_path, 2)
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        CRASHES[crash](patch, error)
        with pytest.raises(type(error)):
            save(tmp_path, step, value=5.0, keep=2, is_best=True)
    assert contents(tmp_path) == before
    assert {p.name for p in tmp_path.iterdir()} == {
        "step_00000001",
        "step_00000002",
        "latest",
        "best",
    }
    verify_checkpoint(save(tmp_path, step, value=5.0))


def test_nothing_is_pruned_before_the_new_one_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(tmp_path, step, keep=2)
    counts = []
    real = shutil.rmtree

    def watched(path: Any, *arguments: Any, **keys: Any) -> None:
        if Path(path).name.startswith("step_"):
            counts.append(len(steps(tmp_path)))
        real(path, *arguments, **keys)

    monkeypatch.setattr(shutil, "rmtree", watched)
    save(tmp_path, 3, keep=2)
    assert counts == [3]


def test_newer_checkpoints_are_set_aside_and_the_links_lead_to_good_ones(tmp_path: Path) -> None:
    paths = [save(tmp_path, step, keep=9, is_best=step in (1, 3)) for step in (1, 2, 3, 4)]
    before = contents(paths[0])
    set_aside_newer(tmp_path, paths[1])
    assert steps(tmp_path) == [1, 2]
    assert contents(paths[0]) == before
    assert (tmp_path / "latest").resolve() == paths[1].resolve()
    assert len(list((tmp_path / "rejected").iterdir())) == 2
    best = tmp_path / "best"
    assert best.exists() or not best.is_symlink(), "best leads nowhere"


def test_the_same_step_may_be_set_aside_more_than_once(tmp_path: Path) -> None:
    first = save(tmp_path, 1)
    for _ in range(3):
        save(tmp_path, 2)
        set_aside_newer(tmp_path, first)
    assert steps(tmp_path) == [1]
    assert len(list((tmp_path / "rejected").iterdir())) == 3


def test_with_nothing_newer_nothing_is_set_aside(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    before = contents(tmp_path)
    set_aside_newer(tmp_path, path)
    assert contents(tmp_path) == before
    assert not (tmp_path / "rejected").exists()


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return builtins.open, (str(self.proof), "w")


def zipped(payload: object) -> bytes:
    file = io.BytesIO()
    torch.save(payload, file)
    return file.getvalue()


def bare(payload: object) -> bytes:
    return pickle.dumps(payload, protocol=2)


@pytest.mark.parametrize("pack", [zipped, bare])
def test_a_malicious_pickle_is_refused_and_not_executed(
    good: Path, tmp_path: Path, pack: Callable[[object], bytes]
) -> None:
    proof = tmp_path / "executed"
    payload = pack({"progress": {}, "ema": Evil(proof)})
    pickle.loads(pickle.dumps(Evil(proof))).close()
    assert proof.exists()  # it does what it says
    proof.unlink()
    (good / "trainer.pt").write_bytes(payload)
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(good)
    assert not proof.exists()


@pytest.mark.parametrize("name", FILES[:2])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(deadline=None, max_examples=100, derandomize=True)
@given(data=st.data())
def test_files_of_arbitrary_bytes_are_refused_with_one_message(
    pristine: Path, name: str, data: st.DataObject
) -> None:
    file = pristine / name
    whole = file.read_bytes()
    noise = st.binary(max_size=200)
    cut = st.builds(
        lambda at, new: whole[:at] + new + whole[at + len(new) :],
        st.integers(0, len(whole)),
        st.binary(min_size=1, max_size=8),
    )
    headed = noise.map(lambda tail: b"\x80\x02" + tail)
    try:
        file.write_bytes(data.draw(noise | cut | headed))
        try:
            loaded = load_checkpoint(pristine)
        except InputError:
            return
        assert isinstance(loaded[1], dict)  # a changed number is for the digest to find
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize("payload", [[1, 2], torch.ones(2), None, "text"], ids=repr)
def test_a_state_that_is_no_mapping_is_refused(good: Path, payload: object) -> None:
    torch.save(payload, good / "trainer.pt")
    with pytest.raises(InputError, match="mapping"):
        load_checkpoint(good)


@pytest.mark.parametrize("name", FILES[:2])
def test_a_file_that_vanished_is_refused(good: Path, name: str) -> None:
    (good / name).unlink()
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(good)


def test_the_best_ones_are_kept_whatever_their_age(tmp_path: Path) -> None:
    """Law: the newest `keep` and the `keep_best` of the highest score; no score is no rank."""
    scores = [0.5, 0.9, None, 0.7, float("nan"), 0.8, 0.1, 0.2, 0.3]
    for step, score in enumerate(scores, start=1):
        save_checkpoint(
            tmp_path,
            weights(),
            {"progress": {}},
            position(step, score),
            keep=2,
            keep_best=3,
            is_best=score == 0.9,
        )
    assert steps(tmp_path) == [2, 4, 6, 8, 9]
    for path in list_checkpoints(tmp_path):
        verify_checkpoint(path)
