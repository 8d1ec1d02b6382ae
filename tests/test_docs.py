"""The documentation points at things that exist."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import pytest

from tests.support.processes import ROOT, start, wait
from trainer import steps_in_a_row, ways

OWN_SITES = "slurm/sites.yaml"
"""A reader's own, which git ignores."""
MOST_BYTES = {".svg": 60_000, ".png": 200_000}
"""Of a picture of the guides."""
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("*/*/*.md"))
    if not {".venv", "runs"} & set(path.relative_to(ROOT).parts)
)
LINK = re.compile(r"\[[^\]\n]+\]\(([^)\s]+)\)")
FILE = re.compile(r"`((?:configs|data|trainer|launch|tests|slurm|benchmarks|docs)/[\w./-]+\.\w+)`")


def anchors(page: Path) -> set[str]:
    """Names under which a renderer finds the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_link_leads_somewhere(page: Path) -> None:
    """Law: a relative link names a file of the project, and a heading that it has."""
    broken = []
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        goal = (page.parent / name).resolve() if name else page
        if not goal.exists() or (anchor and anchor not in anchors(goal)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_file_that_is_named_exists(page: Path) -> None:
    named = set(FILE.findall(page.read_text(encoding="utf-8"))) - {OWN_SITES}
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs/README.md"
    listed = {Path(target).name for target in LINK.findall(index.read_text(encoding="utf-8"))}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed


def results(name: str) -> Any:
    return json.loads((ROOT / "benchmarks/results" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_figures_of_the_first_screen_are_those_that_were_measured() -> None:
    """Law: what README says of speed and accuracy is in benchmarks/results, rounded."""
    page = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    peers = {found["name"]: found for found in results("peers")["contenders"]}
    times = {name: found["ratio"]["median"] for name, found in peers.items()}
    two = peers["convoy-2-ranks"]["epoch_seconds"]["median"]
    gpu = {found["name"]: found for found in results("gpu/results")["parts"]["peers"]["contenders"]}
    ours = gpu["convoy"]["epoch_seconds"]["median"]
    on_gpu = {name: gpu[name]["ratio"]["median"] for name in ("pytorch", "jax-scan")}
    (fast,) = results("mnist_fast")["recipes"]
    accuracy, seconds = fast["test_accuracy"], fast["train_seconds"]["mean"]
    for claim in (
        f"an epoch of the MNIST network takes {peers['convoy']['epoch_seconds']['median']:.2f} s",
        f"the tutorial's loop takes {times['pytorch']:.1f} times as long",
        f"Accelerate {times['accelerate']:.1f}, Lightning {times['lightning']:.1f}, a JAX epoch "
        f"compiled as one scan {times['jax-scan']:.2f}",
        f"On two ranks it takes {two:.2f} s: DistributedDataParallel "
        f"{times['pytorch-ddp']:.1f} times as long, Lightning {times['lightning-ddp']:.1f}",
        f"it took {ours:.3f} s, the tutorial's loop {on_gpu['pytorch']:.0f} times as long and JAX "
        f"{on_gpu['jax-scan']:.2f} times",
        f"{accuracy['mean']:.2%} ± {100 * accuracy['standard_deviation']:.2f} test accuracy over "
        f"{fast['seeds']} seeds take {seconds:.1f} s".replace("%", " %"),
    ):
        assert claim in page


def test_every_way_that_a_run_may_take_is_in_the_table() -> None:
    """Law: docs/execution.md has a row for each word that the line `runs as: ...` may say."""
    page = (ROOT / "docs/execution.md").read_text(encoding="utf-8")
    kinds = (ways.Engine, ways.Gradients, ways.Reduction)
    said = [way for kind in kinds for way in get_args(kind)] + list(ways.KERNELS.values())
    assert [way for way in said if f"\n| `{way}` |" not in page] == []
    assert f"up to {steps_in_a_row.MAX_RECORDED} in a row" in page
    assert f"up to {steps_in_a_row.MAX_EXECUTED} in a row" in page


def test_every_picture_is_shown_somewhere_and_stands_alone() -> None:
    """Law: all of them, small; an SVG has a description and loads nothing from elsewhere."""
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    folder = ROOT / "docs/pictures"
    shown = sorted(path for path in folder.iterdir() if f"pictures/{path.name}" in pages)
    assert shown == sorted(folder.iterdir())
    large = [path.name for path in shown if path.stat().st_size > MOST_BYTES[path.suffix]]
    assert large == []
    pictures = [path for path in shown if path.suffix == ".svg"]
    assert len(pictures) >= 9
    for picture in pictures:
        root = ElementTree.parse(picture).getroot()
        assert root.get("aria-label"), picture.name
        links = re.findall(r"(?:href|src)=|url\((?!#)|@import", picture.read_text(encoding="utf-8"))
        assert links == [], picture.name


def test_every_pattern_is_in_the_file_that_shows_it() -> None:
    """Law: the name in the table is defined in the file beside it."""
    rows = (ROOT / "docs/patterns.md").read_text(encoding="utf-8").splitlines()
    shown = [row.split("|")[3] for row in rows if row.startswith("|")][2:]
    assert len(shown) > 20
    for cell in shown:
        *names, path = re.findall(r"`([^`]+)`", cell)
        source = (ROOT / path).read_text(encoding="utf-8")
        assert all(re.search(rf"^(?:class|def) {name}\b", source, re.M) for name in names), cell


def commands(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        line
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]


@pytest.mark.process
@pytest.mark.slow
def test_the_commands_of_distributed_work_in_their_order(
    small: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Law: as written, on small data in place of MNIST."""
    lines = commands("docs/distributed.md")
    assert len(lines) == 5
    for line in lines:
        words = shlex.split(line)
        launcher = {"python": [], "torchrun": ["-m", "torch.distributed.run", "--standalone"]}
        words = [sys.executable, *launcher[words[0]], *words[1:]]
        if "launch/train.py" in words:
            at = words.index("launch/train.py") + 1
            words[at:at] = small("ignored", f"--output_dir={tmp_path / 'runs'}")
        if "launch/doctor.py" in words:
            words.append(f"--output_dir={tmp_path}")
        words = [str(ROOT / word) if word.startswith("launch/") else word for word in words]
        finished = wait(start(words, cwd=tmp_path))
        assert finished.status == 0, finished.output
    assert {path.name for path in (tmp_path / "runs").glob("[!.]*")} == {"one", "two", "exact2"}
