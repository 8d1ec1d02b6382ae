"""Draw what commands show into docs/pictures: `python -m benchmarks.screens`, or some by name.

Every command runs for real, on a terminal of 96 columns in a fresh folder; what it left there is
written as SVG by rich. The page of runs is opened in a Chromium without a window.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from rich import _export_format
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

from tests.support.browser import Browser

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs/pictures"
COLUMNS, LINES = 96, 60
OF_THIS_MACHINE = r"this machine is shared.*?last bits\)\n"
"""What other work beside this makes a run say, which is of no interest to others."""
CONVOY = (sys.executable, "-m", "convoy")
CONTROL = re.compile(r"\x1b\[(?:(\d*)A|(\d*)K|\?\d+[hl])|(\r?\n)|(\r)")
"""What a progress bar does besides colours: up, erase a line, hide the cursor, next line, back."""
ENVIRONMENT = {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "PYTHONPATH": str(ROOT)}
PAGE_COLOURS = 160


def on_terminal(command: str, folder: Path, stop_at: str | None = None) -> list[str]:
    """The lines, with their colours, that a command leaves on a terminal.

    Args:
        command: As a reader types it.
        folder: Where it is typed.
        stop_at: Ctrl-C is typed when this has been printed.
    """
    words = [*CONVOY, *command.split()[1:]]
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.execve(words[0], words, os.environ | ENVIRONMENT)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    said = bytearray()
    while True:
        try:
            fresh = os.read(terminal, 1 << 16)
        except OSError:  # nobody holds the other end any more
            break
        said += fresh
        if stop_at is not None and stop_at.encode() in said:
            os.write(terminal, b"\x03")
            stop_at = None
    os.close(terminal)
    os.waitpid(process, 0)
    left = "\n".join(left_there(said.decode())).rstrip()
    return re.sub(OF_THIS_MACHINE, "", left, flags=re.DOTALL).split("\n")


def left_there(said: str) -> list[str]:
    """The lines of a terminal after all that was said, in order."""
    lines, row, fresh = [""], 0, False
    start = 0
    for found in (*CONTROL.finditer(said), None):
        text = said[start : found.start() if found else None]
        if text:
            lines[row] = text if fresh else lines[row] + text
            fresh = False
        if found is None:
            break
        start = found.end()
        up, erase, down, back = found.groups()
        if up is not None:
            row = max(row - int(up or 1), 0)
        elif erase is not None:
            lines[row] = ""
        elif down is not None:
            row, fresh = row + 1, False
            lines += [""] * (row == len(lines))
        elif back is not None:
            fresh = True
    return lines


def draw(name: str, described: str, lines: Sequence[str]) -> None:
    """Write lines with their colours as an SVG that loads nothing from elsewhere."""
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, highlight=False
    )
    for line in (*lines, ""):  # the lowest would lose what is below its letters
        console.print(Text.from_ansi(line))
    form = re.sub(r"@font-face \{\{.*?\}\}", "", _export_format.CONSOLE_SVG_FORMAT, flags=re.S)
    form = form.replace("<svg ", f'<svg role="img" aria-label="{described}" ', 1)
    svg = console.export_svg(title="", theme=SVG_EXPORT_THEME, code_format=form, unique_id=name)
    svg = re.sub(r"[ \t]+$", "", re.sub(r"\n\s*\n+", "\n", svg), flags=re.M)
    (PICTURES / f"{name}.svg").write_text(svg.strip() + "\n", encoding="utf-8")


def typed(command: str) -> str:
    return f"\x1b[1m$ {command}\x1b[0m"


def first_run(folder: Path) -> None:
    command = "convoy train --nproc 2 --config mnist"
    lines = on_terminal(command, folder)
    draw(
        "first_run", "A run on two ranks, from its first line to its last", [typed(command), *lines]
    )


def stop_and_continue(folder: Path) -> None:
    command = "convoy train --nproc 2 --config mnist --name stopped"
    before = on_terminal(command, folder, stop_at="epoch 4  ")
    after = on_terminal(command, folder)
    draw(
        "stop_and_continue",
        "A run that Ctrl-C stops, and the same command, which goes on",
        [typed(command), *before, "", typed(command), *after],
    )


def doctor(folder: Path) -> None:
    command = "convoy doctor --config mnist --optimizer.lr 10"
    lines = on_terminal(command, folder)
    plain = [Text.from_ansi(line).plain for line in lines]
    training = next(at for at, line in enumerate(plain) if line.startswith("training "))
    draw(
        "doctor",
        "What the doctor says of a learning rate that is too high",
        [typed(command), "...", *lines[training:]],
    )


def compare(folder: Path) -> None:
    sweeps(folder)
    command = "convoy compare runs/a runs/b"
    lines = on_terminal(command, folder)
    draw("compare", "Two configs with five seeds each, compared", [typed(command), *lines])


def sweeps(folder: Path) -> None:
    """The two sweeps of docs/path_engineer.md, once."""
    if not (folder / "runs/a").is_dir():
        seeds = "convoy sweep --seeds 0..4 --config mnist_fast --data.validation 5000"
        on_terminal(f"{seeds} --name a", folder)
        on_terminal(f"{seeds} --name b --model.kwargs.dropout 0.1", folder)


def page(folder: Path) -> None:
    """The page of the same runs, wide and as narrow as a telephone."""
    sweeps(folder)
    watch = subprocess.Popen(
        [*CONVOY, "watch", "runs/a", "runs/b"],
        cwd=folder,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    browser = Browser(folder / "profile")
    try:
        assert watch.stdout is not None
        address = watch.stdout.readline().split()[-1]
        for name, width, height, dark in (
            ("watch", 1280, 1000, False),
            ("watch_dark", 390, 844, True),
        ):
            browser.open(address, width=width, height=height, dark=dark)
            browser.wait_for("document.querySelectorAll('canvas').length > 4")
            browser.picture(PICTURES / f"{name}.png", whole=False)
            reduce_colours(PICTURES / f"{name}.png")
    finally:
        browser.close()
        watch.terminate()
        watch.wait()


def reduce_colours(path: Path) -> None:
    """A quarter of the bytes, and nobody sees it."""
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(PAGE_COLOURS, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


SCENES = (first_run, stop_and_continue, doctor, compare, page)


def main(argv: Sequence[str]) -> int:
    """Draw all pictures, or those that are named."""
    names = [scene.__name__ for scene in SCENES]
    parser = argparse.ArgumentParser(description="Draw what commands show into docs/pictures.")
    parser.add_argument("names", nargs="*", choices=[[], *names], help=", ".join(names))
    parser.add_argument("--folder", type=Path, help="where to run (default: one that is removed)")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as fresh:
        for scene in SCENES:
            if scene.__name__ in (given.names or names):
                scene(given.folder or Path(fresh))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
