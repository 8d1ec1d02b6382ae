"""The documentation points at things that exist."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import ROOT, start, wait

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
    named = FILE.findall(page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs/README.md"
    listed = {Path(target).name for target in LINK.findall(index.read_text(encoding="utf-8"))}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed


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
