"""launch/find_lr.py: one command, on any number of ranks, that touches no run."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.errors import InputError
from configs.load import load_config
from launch.find_lr import main
from tests.support.processes import Finished, launch, train

Arguments = Callable[..., list[str]]


def find(*arguments: object, ranks: int = 1, output: Path) -> Finished:
    return launch("launch/find_lr.py", *arguments, f"--output={output}", ranks=ranks)


def contents(folder: Path) -> dict[str, tuple[bytes, float]]:
    """Every file of a folder with its bytes and the time it was written."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime) for path in files}


@pytest.mark.process
@pytest.mark.slow
def test_ranks_find_what_one_rank_finds_and_a_run_there_is_untouched(
    small: Arguments, tmp_path: Path
) -> None:
    """Same curve on 1 and 2 ranks up to rounding; they end at the same step."""
    arguments = small("run", "--model.kwargs.dropout=0", "--train.max_steps=3")
    train(*arguments)
    before = contents(tmp_path)
    curves = []
    (tmp_path.parent / "curves").mkdir()
    for ranks in (1, 2):
        output = tmp_path.parent / "curves" / f"ranks{ranks}.png"
        finished = find(*arguments, ranks=ranks, output=output)
        assert finished.status == 0, finished.output
        curves.append(json.loads(output.with_suffix(".json").read_text()))
        steepest = curves[-1]["suggestion"]["steepest"]
        assert f"Suggestion: --optimizer.lr {steepest:.1e}" in finished.stdout
        assert re.search(r"minimum / 10 at \d\.\de-0\d", finished.stdout)
        assert finished.stdout.count("Suggestion") == 1
        assert output.read_bytes().startswith(b"\x89PNG")
    assert contents(tmp_path) == before
    one, two = curves
    assert one["learning_rates"] == two["learning_rates"]
    assert two["losses"][:50] == pytest.approx(one["losses"][:50], rel=1e-3)


def test_the_flag_it_prints_can_be_pasted(
    small: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "lr.png"
    options = ("--lr_finder.min_lr=1e-6", "--lr_finder.max_lr", "10", "--lr_finder.steps=60")
    assert main([*small(), *options, f"--output={output}"]) == 0
    (flag,) = re.findall(r"Suggestion: (.*)", capsys.readouterr().out)
    config = load_config([*small(), *flag.split()], prog="train", description="")
    found = json.loads(output.with_suffix(".json").read_text())
    assert config.optimizer.lr == pytest.approx(found["suggestion"]["steepest"], rel=0.05)
    assert found["learning_rates"][0] == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--lr_finder.steps=few"], "lr_finder.steps: given 'few', expected a whole number, or"),
        (["--lr_finder.max_lr=high"], "lr_finder.max_lr: given 'high', expected a number"),
        (["--lr_finder.min_lr=2"], "lr_finder.max_lr: given 1.0, expected a number above"),
        (["--lr_finder.step=5"], "unknown config key 'lr_finder.step'"),
        (["--lr_finder.steps"], "argument --lr_finder.steps: expected one argument"),
        (["--optimizer.rl=1"], "unknown config key 'optimizer.rl'"),
        (["--output=curve.pdf"], "--output: given 'curve.pdf'"),
        (["--output=/no/such/folder/lr.png"], "expected a file in a folder that exists"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    small: Arguments, tmp_path: Path, extra: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        main([*small(), *extra])
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_does_not_fall_is_said_and_the_curve_kept(
    small: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--lr_finder.max_lr=1e-6", "--lr_finder.steps=20", "--lr_finder.smoothing=0.1")
    assert main([*small(), *options, f"--output={tmp_path / 'lr.png'}"]) == 1
    assert "no suggestion" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "lr.json").read_text())["losses"]) == 20


@pytest.mark.process
def test_help_shows_its_own_options_and_the_config() -> None:
    finished = launch("launch/find_lr.py", "--help", "all")
    assert finished.status == 0
    for option in ("--lr_finder.min_lr", "--lr_finder.steps", "--output", "--optimizer.lr"):
        assert option in finished.stdout


def test_without_matplotlib_there_are_numbers_and_the_way_to_a_picture(
    small: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Law: what was found lies where runs lie, and only the picture needs the extra."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    runs = tmp_path / "new" / "runs"
    assert main([*small(), "--lr_finder.steps=20", f"--output_dir={runs}", "--name=mine"]) in (0, 1)
    found = capsys.readouterr().out
    assert "no picture" in found
    assert "pip install" in found
    assert [path.name for path in runs.iterdir()] == ["mine_lr_finder.json"]
