"""`logging.hook`: called when something was recorded, and never part of what is learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from configs.errors import InputError
from tests.support import hooks
from tests.support.odd_runs import CHANGING, arguments, run
from tests.support.processes import train
from tests.support.runs import assert_same_bits, comparable
from trainer.ranks.failures import RunFailed

HOOK = "--logging.hook=tests.support.hooks:"
MODEL = f"{CHANGING}:LateBranch"  # counts its passes in a buffer


@pytest.mark.parametrize("more", [(), ("--train.ema_decay=0.9",)])
def test_a_hook_changes_no_bit_and_is_called_at_every_record(
    more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: whatever it draws, runs, zeroes or leaves behind; stopped and continued as well."""
    monkeypatch.setattr(hooks, "SEEN", [])
    plain = run(tmp_path / "plain", MODEL, *more)
    hooked = run(tmp_path / "hooked", MODEL, *more, f"{HOOK}look")
    training = [("training", step, True) for step in range(1, 10)]
    evaluation = [("evaluation", step, True) for step in (3, 6, 9)]
    assert sorted(hooks.SEEN) == sorted(training + evaluation)
    run(tmp_path / "parts", MODEL, *more, f"{HOOK}look", "--train.max_steps=4")
    parts = run(tmp_path / "parts", MODEL, *more, f"{HOOK}look")
    for other in (hooked, parts):
        assert_same_bits(plain, other)
    assert comparable(plain) == comparable(hooked)


def test_a_hook_shows_texts_pictures_and_histograms(tmp_path: Path) -> None:
    folder = run(tmp_path, MODEL, f"{HOOK}look", "--logging.tensorboard=true")
    texts = {path.name: path.read_text() for path in (folder / "notes" / "a_line").iterdir()}
    assert len(texts) == 9
    assert texts["step_00000003.txt"].startswith("evaluation 3 ")
    picture = Image.open(folder / "notes" / "blob" / "step_00000009.png")
    assert picture.size == (4, 3)
    assert [picture.getpixel((0, 0)), picture.getpixel((3, 2))] == [0, 255]
    spread = json.loads((folder / "notes" / "spread" / "step_00000009.json").read_text())
    assert (spread["edges"][0], spread["edges"][-1]) == (0, 2)
    assert (spread["counts"][0], spread["counts"][-1], sum(spread["counts"])) == (1, 2, 4)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [image.step for image in events.Images("blob")][-1] == 9
    (histogram,) = {tuple(event.histogram_value.bucket) for event in events.Histograms("spread")}
    assert histogram == tuple(spread["counts"])
    assert "a/line/text_summary" in events.Tags()["tensors"]


def test_a_hook_that_changes_what_is_trained_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"hooks:meddle has changed the weights, after step 1"):
        run(tmp_path / "a", MODEL, f"{HOOK}meddle")
    with pytest.raises(RunFailed, match=r"parameter a\.weight of the model was frozen"):
        run(tmp_path / "b", MODEL, f"{HOOK}unfreeze")


def test_a_hook_that_fails_is_left_out_and_one_that_is_none_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Law: what only looks costs no run; a wrong name is refused before anything is written."""
    assert_same_bits(
        run(tmp_path / "plain", MODEL, "--train.epochs=1"),
        run(tmp_path / "broken", MODEL, "--train.epochs=1", f"{HOOK}fail"),
    )
    said = [r.message for r in caplog.records if "logging.hook" in r.message]
    assert len(said) == 1
    assert "hooks:fail failed; training goes on without it" in said[0]
    assert "KeyError: 'no such metric'" in said[0]
    with pytest.raises(InputError, match="logging.hook: given"):  # noqa: RUF043
        run(tmp_path / "none", MODEL, f"{HOOK}missing")
    assert not (tmp_path / "none" / "run").exists()


@pytest.mark.process
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_hook_of_two_ranks_changes_no_bit(strategy: str, tmp_path: Path) -> None:
    """Law: by rank 0 alone, and by all ranks where the model is in parts."""
    way = (f"--parallel.strategy={strategy}", "--train.epochs=2", "--logging.every_steps=2")
    train(*arguments(tmp_path / "plain", MODEL, *way), ranks=2)
    train(*arguments(tmp_path / "hooked", MODEL, *way, f"{HOOK}look"), ranks=2)
    assert_same_bits(tmp_path / "plain" / "run", tmp_path / "hooked" / "run")
    texts = list((tmp_path / "hooked" / "run" / "notes" / "a_line").iterdir())
    assert len(texts) == 4
