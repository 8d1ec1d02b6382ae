"""The one error a user's input can cause."""

from __future__ import annotations

from configs.visible import visible


class InputError(ValueError):
    """Bad config, file, checkpoint or environment: a command prints the message and exits 2.

    Control characters in names and paths are spelled out.

    Args:
        what: The thing at fault, such as a config key or a path.
        given: What was found there; omitted from the message when None.
        expected: What would have been accepted.
        remedy: What to do next, as a full sentence.
    """

    shared = False
    """Every rank raises this same error, so that one of them is enough to say it."""

    def __init__(
        self, what: str, *, given: object = None, expected: str = "", remedy: str = ""
    ) -> None:
        parts = [f"given {given!r}"] if given is not None else []
        parts += [f"expected {expected}"] if expected else []
        message = what + (": " + ", ".join(parts) if parts else "")
        super().__init__(visible(message + (f". {remedy}" if remedy else "")))


def expect(config: object, key: str, holds: bool, expected: str, remedy: str = "") -> None:
    """Refuse the value that a config dataclass holds under `key` unless `holds`."""
    if not holds:
        given = getattr(config, key.rpartition(".")[2])
        raise InputError(key, given=given, expected=expected, remedy=remedy)
