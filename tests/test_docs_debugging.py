"""What docs/debugging.md and its appendix show is run: snippets hold, commands work."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import ROOT, begin, wait

PAGE = (ROOT / "docs/debugging.md").read_text(encoding="utf-8")
APPENDIX = (ROOT / "docs/appendix_debugging.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


SNIPPETS = blocks(PAGE, "python") + blocks(APPENDIX, "python")
COMMANDS = [line for block in blocks(PAGE, "bash") for line in block.splitlines()]


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.split()[-1][:20])
def test_every_snippet_holds(snippet: str) -> None:
    """Law: a snippet states its point as an assertion, which is true."""
    assert "assert " in snippet
    exec(compile(snippet, "debugging.md", "exec"), {"__name__": "snippet"})


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("line", COMMANDS, ids=range(len(COMMANDS)))
def test_every_command_works(line: str, small: Callable[..., list[str]], tmp_path: Path) -> None:
    """Law: it ends with status 0, on small data in place of MNIST."""
    words = shlex.split(line)
    launcher = {"python": [], "torchrun": ["-m", "torch.distributed.run", "--standalone"]}
    words = [sys.executable, *launcher[words[0]], *words[1:]]
    if "--config" in words:
        at = words.index("--config")
        words[at : at + 2] = small()
    else:
        words.append(f"--output_dir={tmp_path}")
    script = next(i for i, word in enumerate(words) if word.startswith("launch/"))
    words[script] = str(ROOT / words[script])
    words += ["--checkpoint.every_epochs=null"] if "train.py" in words[script] else []
    words = ["--train.epochs=20" if "epochs=2" in word else word for word in words]
    finished = wait(begin(words, cwd=tmp_path))
    assert finished.status == 0, finished.output


def test_every_check_that_the_page_names_exists() -> None:
    """Law: a check in the table is one that the doctor makes."""
    files = [*ROOT.glob("launch/*/check_*.py"), *ROOT.glob("launch/*/examine.py")]
    assert len(files) > 5
    sources = "".join(path.read_text(encoding="utf-8") for path in files)
    table = [row.split("|")[3] for row in PAGE.splitlines() if row.startswith("|")][2:]
    named = [name for cell in table for name in re.findall(r"`(\w+)`", cell)]
    assert len(named) > 15
    assert [name for name in named if f'"{name}"' not in sources] == []
