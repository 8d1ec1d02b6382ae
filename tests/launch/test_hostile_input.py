"""Whatever is thrown at it, a command gives a result or one message, and soon.

Each case is drawn from a seed of its own, which a failure names: 2,300 of them.
"""

from __future__ import annotations

import gzip
import random
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.load import RECIPES, known_keys, load_config
from configs.schema import DataConfig
from data.catalogue.archive import extract
from data.catalogue.dataset_facts import ArchiveFacts
from data.datasets import load_datasets
from data.formats.idx import read_idx
from launch import compare, evaluate, export, predict
from launch.sweeping.trials import read_sweep
from tests.support.checkpoints import sign
from tests.support.data_sets import make_idx
from tests.support.hostile import NASTY, attempt, spoil_bytes, spoil_text

pytestmark = pytest.mark.slow
Case = Callable[[random.Random], Callable[[], Any]]
TEXTS = ("config.yaml", "model.json", "metrics.jsonl", "summary.json", "environment.json")


def try_all(kind: str, count: int, case: Case) -> Counter[str]:
    """Every case of a kind; the outcomes that are faults, with their seeds, fail the test."""
    outcomes: Counter[str] = Counter()
    faults = []
    for number in range(count):
        outcome = attempt(case(random.Random(f"{kind} {number}")))
        outcomes[outcome] += 1
        if outcome not in ("accepted", "refused"):
            faults.append(f"{kind} {number}: {outcome}")
    assert not faults, "\n".join(faults)
    assert outcomes["refused"] > count / 20, outcomes
    return outcomes


def test_configs(tmp_path: Path) -> None:
    recipes = [path.read_text() for path in sorted(RECIPES.glob("*.yaml"))]
    path = tmp_path / "x.yaml"

    def case(draw: random.Random) -> Callable[[], Any]:
        text = spoil_text(draw.choice(recipes), draw)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        return partial(load_config, [f"--config={path}"], prog="", description="")

    assert try_all("config", 600, case)["accepted"]


def test_sweeps(tmp_path: Path) -> None:
    sweeps = [path.read_text() for path in sorted((RECIPES / "sweeps").glob("*.yaml"))]
    path = tmp_path / "x.yaml"

    def case(draw: random.Random) -> Callable[[], Any]:
        path.write_text(spoil_text(draw.choice(sweeps), draw))
        return partial(read_sweep, path, count=3, seed=0)

    assert try_all("sweep", 150, case)["accepted"]


def test_command_lines() -> None:
    keys = known_keys()

    def case(draw: random.Random) -> Callable[[], Any]:
        words = []
        for _ in range(draw.randint(1, 3)):
            key, value = (
                draw.choice([*keys, "model.kwargs.x", "", "-", "config"]),
                draw.choice(NASTY),
            )
            words += draw.choice(([f"--{key}={value}"], [f"--{key}", value], [value], [f"--{key}"]))
        return partial(load_config, words, prog="", description="")

    try_all("line", 500, case)


def test_idx_files(tmp_path: Path) -> None:
    folder = make_idx(tmp_path / "set")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}

    def case(draw: random.Random) -> Callable[[], Any]:
        name = draw.choice(sorted(whole))
        content = spoil_bytes(whole[name], draw)
        if draw.random() < 0.4:
            content = gzip.compress(content)
            content = spoil_bytes(content, draw) if draw.random() < 0.5 else content
        for other in whole:
            (folder / other).write_bytes(whole[other])
        (folder / name).write_bytes(content)
        config = DataConfig(dataset="idx", root=str(folder))
        everything = draw.random() < 0.2
        return (
            partial(load_datasets, config, seed=0)
            if everything
            else partial(read_idx, folder / name)
        )

    assert try_all("idx", 400, case)["accepted"]


def test_run_directories(
    trained_run: Path, tmp_path: Path, idx_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images.npy"
    np.save(images, np.zeros((2, 1, 9, 7), dtype=np.uint8))
    run = tmp_path / "run"

    def case(draw: random.Random) -> Callable[[], Any]:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(trained_run, run, symlinks=True)
        checkpoint = (run / "checkpoints/best").resolve()
        if draw.random() < 0.6:
            path = run / draw.choice(TEXTS)
            path.write_text(spoil_text(path.read_text(), draw), errors="surrogatepass")
        else:
            path = checkpoint / draw.choice(("manifest.json", "trainer.pt", "model.safetensors"))
            path.write_bytes(spoil_bytes(path.read_bytes(), draw))
            if path.suffix != ".json" and draw.random() < 0.8:
                sign(checkpoint)
        output = f"--output={tmp_path / 'output'}"
        return draw.choice(
            (
                partial(evaluate.main, [str(run)]),
                partial(predict.main, [str(run), str(images), output + ".csv"]),
                partial(export.main, [str(run), "--format=safetensors", output]),
                partial(compare.main, [str(run), str(trained_run)]),
            )
        )

    assert try_all("run", 250, case)["accepted"]
    assert "\x1b" not in capsys.readouterr().out


def test_archives(tmp_path: Path) -> None:
    """Even if the digest is right: it is that of the spoilt archive."""
    (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 30)
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "a.bin", "inner/a.bin")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "a.bin", "inner/a.bin")
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.write(tmp_path / "a.bin", "inner/a.bin")
    whole = {path.name: path.read_bytes() for path in tmp_path.glob("x.*")}
    target = tmp_path / "target"

    def case(draw: random.Random) -> Callable[[], Any]:
        import hashlib

        name = draw.choice(sorted(whole))
        content = spoil_bytes(whole[name], draw)
        (tmp_path / name).write_bytes(content)
        shutil.rmtree(target, ignore_errors=True)
        digest = hashlib.sha256(content).hexdigest()
        facts = ArchiveFacts(
            name=name, num_bytes=len(content), sha256=digest, folder="inner", members=("a.bin",)
        )
        return partial(extract, tmp_path / name, facts, target)

    assert try_all("archive", 400, case)["accepted"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("a.bin", "target", "x.tar", "x.tar.gz", "x.zip")
    ]
