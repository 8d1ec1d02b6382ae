"""Convoy as a package: `from convoy import fit`, `from convoy.data.datasets import ArrayDataset`.

Where it is installed, the folders configs, data, trainer and launch lie in here. In the repository
they lie beside this one, and their files import each other as `configs.errors`; the same modules
answer to `convoy.configs.errors` then.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.fit import fit

__all__ = ["fit"]
FOLDERS = ("configs", "data", "trainer", "launch")


def __getattr__(name: str) -> Any:
    """`fit`, when it is asked for: it imports torch."""
    if name == "fit":
        from trainer.fit import fit

        return fit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Beside(MetaPathFinder, Loader):
    """Finds `convoy.data.datasets` as `data.datasets`, which is the same module then."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, rest = name.partition(".")
        ours = package == __name__ and rest.partition(".")[0] in FOLDERS
        return ModuleSpec(name, self) if ours else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        found = importlib.import_module(spec.name.partition(".")[2])
        spec.loader_state = found.__spec__
        return found

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


if not (Path(__file__).parent / FOLDERS[0]).is_dir():
    sys.meta_path.insert(0, Beside())
