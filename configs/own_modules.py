"""What this project's modules are called: `trainer.step` in the repository, `convoy.trainer.step`
where it is installed. What is written down of a run calls them as in the repository."""

from __future__ import annotations

import importlib
from types import ModuleType

PREFIX = __name__.rpartition(".")[0].removesuffix("configs")
"""Before their names: nothing, or `convoy.`."""


def name_in_repository(module: str) -> str:
    """The name of a module, or of a thing in one, that is the same wherever it is installed."""
    return module.removeprefix(PREFIX)


def import_module(name: str) -> ModuleType:
    """The module of that name, else the one of this project that has it in the repository.

    Raises:
        ModuleNotFoundError: As `importlib.import_module` does.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not PREFIX or not f"{name}.".startswith(f"{error.name}."):
            raise
        try:
            return importlib.import_module(PREFIX + name)
        except ModuleNotFoundError:
            raise error from None
