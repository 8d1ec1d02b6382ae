"""A checkpoint is loaded as it was saved, and one that was touched is not believed."""

from __future__ import annotations

import builtins
import io
import json
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

from configs.errors import InputError
from tests.support.checkpoints import FILES, position, save
from trainer.checkpoints.checkpoint import Refused, load_checkpoint, verify_checkpoint
from trainer.checkpoints.checkpoint_folder import save_checkpoint


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
