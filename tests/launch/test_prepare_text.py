"""`launch/prepare_data.py --text`: a folder of tokens of text files, complete or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.errors import InputError
from configs.schema import DataConfig
from data.datasets import load_datasets
from data.formats.tokens import TokenWindows
from launch.prepare_data import main

TEXT = "".join(f"{number} sheep\n" for number in range(200))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "sheep.txt"
    path.write_text(TEXT)
    return path


def test_a_text_becomes_tokens_that_a_run_reads(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: the parts put together are the text, and the line that is printed trains on them."""
    root = tmp_path / "made" / "tokens"
    options = ["--tokenizer=bytes", "--validation=0.1", "--test=0.2"]
    assert main(["--text", str(text), f"--root={root}", *options]) == 0
    assert f"--data.dataset tokens --data.root {root}" in capsys.readouterr().out
    data = load_datasets(DataConfig(dataset="tokens", root=str(root)), seed=0)
    assert data.vocabulary is not None
    found = ""
    for part in (data.train, data.validation, data.test):
        assert isinstance(part, TokenWindows)
        found += data.vocabulary.decode(part.tokens.tolist())
    assert found == TEXT
    assert sorted(path.name for path in root.iterdir()) == [
        "test.bin",
        "tokens.json",
        "train.bin",
        "validation.bin",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["mnist", "--root=ROOT"], "no data set beside --text"),
        ([], "the folder to write tokens to"),
        (["--root=ROOT", "--test=1"], "--test: given 1.0"),
        (["--root=ROOT", "--test=0.6", "--validation=0.6"], "parts below 1 in all"),
        (["--root=ROOT", "--tokenizer=words"], "bytes, characters or a tokenizer.json"),
        (["--root=sheep.txt"], "a folder to write to"),
    ],
)
def test_what_cannot_be_made_is_refused_and_nothing_is_written(
    options: list[str],
    words: str,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [option.replace("ROOT", str(tmp_path / "made")) for option in options]
    with pytest.raises(InputError, match=words):
        main([*arguments, "--text", str(text)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sheep.txt"]


def test_tokens_are_not_written_over(text: Path, tmp_path: Path) -> None:
    command = ["--text", str(text), f"--root={tmp_path / 'made'}"]
    assert main(command) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    with pytest.raises(InputError, match="a folder without tokens"):
        main([*command, "--tokenizer=bytes"])
    assert {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()} == before
    header = json.loads(before["tokens.json"])
    assert header["dtype"] == "uint16"
    assert header["tokens"] == {"train": round(0.9 * len(TEXT)), "test": round(0.1 * len(TEXT))}
