"""Half-written files in the cache of torch.compile: the same command recovers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from torch._inductor.codecache import code_hash

from tests.support.odd_runs import arguments
from tests.support.processes import train
from tests.support.runs import assert_same_bits
from trainer.backward.compile_cache import drop_damaged, recovering

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="compiling takes g++")


def test_libraries_that_end_too_early_are_dropped_and_others_stay(tmp_path: Path) -> None:
    whole = next(Path(os.__file__).parent.glob("lib-dynload/*.so"), None)
    assert whole is not None, "Python has some library of its own"
    (tmp_path / "ab").mkdir()
    (tmp_path / "locks").mkdir()
    for name, part in [("whole", 1.0), ("empty", 0.0), ("short", 0.001), ("cut", 0.9)]:
        path = tmp_path / "ab" / f"{name}.so"
        shutil.copyfile(whole, path)
        os.truncate(path, int(path.stat().st_size * part))
    script = "import torch\n\ncall = torch.nn.Linear(2, 3)\n"
    key = code_hash(script.strip())
    for name, text in [(key, script), (f"c{'2' * 51}", script[:-5]), (f"c{'3' * 51}", "")]:
        (tmp_path / "ab" / f"{name}.py").write_text(text)
    assert drop_damaged(tmp_path) == 5
    left = sorted(path.name for path in (tmp_path / "ab").iterdir())
    assert left == sorted(["whole.so", f"{key}.py"])
    assert drop_damaged(tmp_path / "missing") == 0


def test_what_only_loading_shows_is_cleared_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Law: an entry that an error names is removed, once; any other error is the caller's."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    key = f"cab{'4' * 49}"
    path = tmp_path / "ab" / f"{key}.so"
    path.parent.mkdir()

    def load(number: int) -> int:
        if number < 0:
            raise ValueError(key)
        if path.exists() or number > 5:
            raise ImportError(f"{path}: file too short")
        return number + 1

    path.write_text("x")
    os.utime(path, (1, 1))
    again = recovering(load)
    assert again(1) == 2
    assert [record.message.count(key[:9]) for record in caplog.records] == [1]
    with pytest.raises(ImportError):
        again(6)
    path.write_text("x")
    with pytest.raises(ValueError, match=key):
        again(-1)
    assert path.exists()


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("way", [("1", "ddp"), ("2", "fsdp")])
def test_a_start_after_a_kill_clears_what_is_half_written_and_goes_on(
    way: tuple[str, str], tmp_path: Path
) -> None:
    """Law: nobody has to know where torch.compile keeps what; results have the same bits, also of a
    run that is stopped and started again, which makes no kernel that lies beside the runs."""
    ranks, strategy = way
    options = (
        "--compile.enabled=true",
        "--compile.regional=true",
        "--train.epochs=1",
        "--data.drop_last=true",  # one size, one graph
        f"--parallel.strategy={strategy}",
    )

    def start(name: str, *more: str) -> str:
        command = arguments(tmp_path, "stacked", *options, f"--name={name}", *more)
        return train(*command, ranks=int(ranks)).output

    start("first")
    (cache,) = tmp_path.glob(".compiled-*/*")
    scripts = list(cache.glob("*/*.py"))
    libraries = list(cache.glob("*/*.main.so"))
    assert scripts
    assert libraries
    for number, path in enumerate(scripts):
        os.truncate(path, path.stat().st_size // 2 if number % 2 else 0)
    for path in libraries:
        os.truncate(path, 0)
    said = start("second")
    number = len(libraries) + len(scripts)
    assert ranks != "1" or f"{number} half-written files in the cache of torch.compile" in said
    assert "half-written files in the cache of torch.compile" in said
    assert_same_bits(tmp_path / "first", tmp_path / "second")
    kept = times(cache)
    assert "cache of torch.compile" not in start("third", "--train.max_steps=1")
    assert "continuing from" in start("third")
    assert_same_bits(tmp_path / "first", tmp_path / "third")
    assert times(cache) == kept


def times(cache: Path) -> dict[Path, int]:
    """When each kernel was made."""
    return {path: path.stat().st_mtime_ns for path in cache.glob("*/*.so")}
