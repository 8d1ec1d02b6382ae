"""A trained language model goes on with a text, the same text under the same seed."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import torch

from configs.errors import InputError
from launch.export import main as export
from launch.predict import main as predict
from launch.using.trained import load_trained
from tests.support.texts import CONTEXT, make_text, train_text


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    return train_text(make_text(folder), folder, "run", "--train.epochs=8")


def written(trained: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert predict([str(trained), *arguments]) == 0
    return capsys.readouterr().out


def test_a_prompt_is_gone_on_with_under_a_seed(
    trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Law: the same options give the same text, another seed another one; it starts with the
    prompt, and a file holds what the screen shows."""
    how = ("--prompt=the cat", "--max_tokens=60", "--temperature=1.5")
    first = written(trained, capsys, *how)
    assert first.startswith("the cat")
    assert len(first) > len("the cat") + 1
    assert written(trained, capsys, *how, "--seed=0") == first
    assert any(written(trained, capsys, *how, f"--seed={seed}") != first for seed in (1, 2))
    written(trained, capsys, *how, f"--output={tmp_path / 'text.txt'}")
    assert (tmp_path / "text.txt").read_text() == first


def test_the_likeliest_token_is_taken_at_temperature_0(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: it is what top-k of 1 leaves, and the argmax of the logits one after the other."""
    how = ("--prompt=the ca", "--max_tokens=30")
    cold = written(trained, capsys, *how, "--temperature=0")
    assert written(trained, capsys, *how, "--top_k=1", "--seed=7") == cold
    loaded = load_trained(trained)
    vocabulary = loaded.facts.vocabulary
    assert vocabulary is not None
    ids = vocabulary.encode("the ca", "").tolist()
    for _ in range(30):
        token = int(loaded.logits(torch.tensor([ids[-CONTEXT:]]))[0, -1].argmax())
        if token == vocabulary.separator:
            break
        ids.append(token)
    assert cold == vocabulary.decode(ids) + "\n"


def test_a_prompt_comes_from_standard_input(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = written(trained, capsys, "--prompt=a dog", "--max_tokens=9")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a dog")))
    assert written(trained, capsys, "--prompt=-", "--max_tokens=9") == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt=Zebra"], "character 0: given 'Z'"),
        (["--prompt=a", "--temperature=-1"], "--temperature"),
        (["--prompt=a", "--top_k=0"], "--top_k"),
        (["--prompt=a", "--max_tokens=0"], "--max_tokens"),
        (["digit.png"], "--prompt TEXT for a run on tokens"),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused(
    arguments: list[str], words: str, trained: Path
) -> None:
    with pytest.raises(InputError, match=words):
        predict([str(trained), *arguments])


def test_a_run_on_pictures_has_no_text(trained_run: Path) -> None:
    with pytest.raises(InputError, match=r"data.dataset=tokens"):
        predict([str(trained_run), "--prompt=a"])


@pytest.mark.parametrize("kind", ["safetensors", "torch_export"])
def test_what_is_exported_takes_tokens(
    kind: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: read back it computes the logits of the model, for whole numbers, at any batch size."""
    output = tmp_path / "exported"
    assert export([str(trained), f"--format={kind}", f"--output={output}"]) == 0
    assert "differs from the model by at most" in capsys.readouterr().out
    if kind == "torch_export":
        program = torch.export.load(output).module()
        ids = torch.arange(7 * CONTEXT).reshape(7, CONTEXT) % 5
        expected = load_trained(trained).logits(ids)
        torch.testing.assert_close(program(ids), expected, rtol=1e-4, atol=1e-4)
