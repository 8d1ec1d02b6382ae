"""Whatever is thrown at it, a command gives a result or one message, and soon.

Each case is drawn from a seed of its own, which a failure names: some 1,600 of them, of which the
first ones of each kind are tried by the quick suite.
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

from configs.keys import known_keys
from configs.load import RECIPES, load_config
from configs.schema import DataConfig
from data.catalogue.archive import extract
from data.catalogue.dataset_facts import ArchiveFacts
from data.datasets import load_datasets
from data.formats.idx import read_idx
from launch import compare, evaluate, export, predict
from launch.sweeping.trials import read_sweep
from tests.support.checkpoints import sign
from tests.support.data_sets import make_arrays, make_idx, make_shards, make_tree
from tests.support.hostile import NASTY, attempt, spoil_bytes, spoil_text

FEW, ALL = 0.04, 0.45
pytestmark = pytest.mark.parametrize("part", [FEW, pytest.param(ALL, marks=pytest.mark.slow)])
Case = Callable[[random.Random], Callable[[], Any]]
TEXTS = ("config.yaml", "model.json", "metrics.jsonl", "summary.json", "environment.json")


def attempt_all(kind: str, count: float, case: Case) -> Counter[str]:
    """Every case of a kind; the outcomes that are faults, with their seeds, fail the test."""
    outcomes: Counter[str] = Counter()
    faults = []
    for number in range(int(count)):
        outcome = attempt(case(random.Random(f"{kind} {number}")))
        outcomes[outcome] += 1
        if outcome not in ("accepted", "refused"):
            faults.append(f"{kind} {number}: {outcome}")
    assert not faults, "\n".join(faults)
    assert outcomes["refused"] > count / 20, outcomes
    return outcomes


def test_configs(tmp_path: Path, part: float) -> None:
    recipes = [path.read_text() for path in sorted(RECIPES.glob("*.yaml"))]
    path = tmp_path / "x.yaml"

    def case(draw: random.Random) -> Callable[[], Any]:
        text = spoil_text(draw.choice(recipes), draw)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        return partial(load_config, [f"--config={path}"], prog="", description="")

    assert attempt_all("config", 600 * part, case)["accepted"]


def test_sweeps(tmp_path: Path, part: float) -> None:
    sweeps = [path.read_text() for path in sorted((RECIPES / "sweeps").glob("*.yaml"))]
    path = tmp_path / "x.yaml"

    def case(draw: random.Random) -> Callable[[], Any]:
        path.write_text(spoil_text(draw.choice(sweeps), draw))
        return partial(read_sweep, path, count=3, seed=0)

    assert attempt_all("sweep", 150 * part, case)["accepted"]


def test_command_lines(part: float) -> None:
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

    attempt_all("line", 500 * part, case)


def test_idx_files(tmp_path: Path, part: float) -> None:
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

    assert attempt_all("idx", 400 * part, case)["accepted"]


def make_tables(folder: Path, ending: str) -> Path:
    lines = [f"{number / 7:.3f},{number % 5},{'xyz'[number % 3]}" for number in range(40)]
    folder.mkdir()
    for split in ("train", "test"):
        path = folder / f"{split}.csv"
        path.write_text("\n".join(["a,b,label", *lines]))
        if ending == "parquet":
            from pyarrow import csv, parquet

            parquet.write_table(csv.read_csv(path), path.with_suffix(".parquet"))
            path.unlink()
    return folder


SETS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "image_folder": (partial(make_tree, num_train=9, num_test=6), {"size": 16}),
    "npy": (make_arrays, {}),
    "webdataset": (make_shards, {"size": 16}),
    "csv": (partial(make_tables, ending="csv"), {"target": "label"}),
    "parquet": (partial(make_tables, ending="parquet"), {"target": "label"}),
}


@pytest.mark.parametrize("kind", SETS)
def test_data_of_your_own(tmp_path: Path, kind: str, part: float) -> None:
    make, kwargs = SETS[kind]
    folder = make(tmp_path / "set")
    whole = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    config = DataConfig(dataset=kind, root=str(folder), kwargs=kwargs)

    def read_all() -> None:
        found = load_datasets(config, seed=0)
        for split in (found.train, found.test):
            for index in range(len(split)) if hasattr(split, "__getitem__") else ():
                split[index]

    def case(draw: random.Random) -> Callable[[], Any]:
        for path, content in whole.items():
            path.write_bytes(content)
        chosen = draw.choice(list(whole))
        chosen.write_bytes(spoil_bytes(whole[chosen], draw))
        return read_all

    attempt_all(kind, 250 * part, case)


def test_run_directories(
    trained_run: Path,
    tmp_path: Path,
    idx_folder: Path,
    capsys: pytest.CaptureFixture[str],
    part: float,
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

    assert attempt_all("run", 250 * part, case)["accepted"]
    assert "\x1b" not in capsys.readouterr().out


def test_archives(tmp_path: Path, part: float) -> None:
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

    assert attempt_all("archive", 400 * part, case)["accepted"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("a.bin", "target", "x.tar", "x.tar.gz", "x.zip")
    ]
