"""Files and command lines that somebody has spoilt, by chance or not; drawn from a seed."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable
from typing import Any

from configs.errors import InputError

NASTY = (
    *("null", "true", "-1", "0", "1e999", "-.inf", ".nan", str(2**63)),
    *("9" * 5000, "1" + ":9" * 3000, "[" * 200, "a" * 3000, "é" * 300),
    *("''", "[]", "{}", "[[]]", "{a: {b: [1, 2]}}", "&a [*a]", "*a", "!!binary x", "!x y"),
    *("x:y", "os:system", ":", "a:b:c", "..", "/", "~", "/dev/zero", "/etc/shadow"),
    *("\\0", '"\\0"', "\x1b[2J", '"\\e[2J"', "\u202e", "=1+1", "%s%n", "${HOME}", "$(id)"),
)
"""What stands in the place of a value."""
SECONDS = 5.0


def spoil_text(text: str, draw: random.Random) -> str:
    """One to three changes of a text: a value, a line, a letter."""
    for _ in range(draw.randint(1, 3)):
        lines = text.split("\n")
        number = draw.randrange(len(lines))
        change = draw.randrange(6)
        if change == 0:
            key = lines[number].partition(": ")[0]
            lines[number] = f"{key}: {draw.choice(NASTY)}"
        elif change == 1:
            lines.insert(number, lines[draw.randrange(len(lines))])
        elif change == 2:
            lines[number] = " " * draw.randint(0, 9) + lines[number].lstrip()
        elif change == 3:
            numbers = list(re.finditer(r"[\d.]+|\"[^\"]*\"", lines[number]))
            if numbers:
                found = draw.choice(numbers)
                before, after = lines[number][: found.start()], lines[number][found.end() :]
                lines[number] = f"{before}{draw.choice(NASTY)}{after}"
        elif change == 4:
            del lines[number]
        else:
            place = draw.randint(0, len(lines[number]))
            letter = draw.choice("{}[]&*!|>'\"%@`#,?:-\t\0\x07\x85")
            lines[number] = lines[number][:place] + letter + lines[number][place:]
        text = "\n".join(lines) or " "
    return text


def spoil_bytes(content: bytes, draw: random.Random) -> bytes:
    """One to four changes of some bytes: flipped, cut, doubled, or set to an extreme."""
    found = bytearray(content or b"\0")
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(min(len(found), draw.choice((16, 600, 10**9))))
        change = draw.randrange(5)
        if change == 0:
            found[place] ^= 1 << draw.randrange(8)
        elif change == 1:
            found[place : place + 4] = draw.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"))
        elif change == 2:
            del found[place + 1 :]
        elif change == 3:
            found[place:place] = found[place : place + draw.randint(1, 64)]
        else:
            found[place] = draw.randrange(256)
    return bytes(found)


class TooLong(BaseException):
    """No message within the time; no `except Exception` stops it."""


def attempt(call: Callable[[], Any]) -> str:
    """How a command took it: accepted, refused, or (which is a fault) something else."""

    def ring(number: int, frame: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS * 20)  # what waits; others may use the machine
    started = time.process_time()
    try:
        call()
        outcome = "accepted"
    except InputError:
        outcome = "refused"
    except SystemExit as end:
        outcome = "refused" if end.code in (0, 2) else f"exit status {end.code}"
    except TooLong:
        outcome = "no end"
    except Exception as error:
        outcome = f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    slow = time.process_time() - started > SECONDS
    return "too slow" if slow and outcome in ("accepted", "refused") else outcome
