"""What is installed: one package, `convoy`, which holds the folders that lie at the top level here.

As `configs` and `data` they would hide a user's packages of these names, or be hidden by them. So
`configs/` is installed as `convoy.configs`, and imports the rest of the project from there. An
editable install has the folders as they are; `convoy/__init__.py` lends them the same names. The
rest of the build is in pyproject.toml.
"""

from __future__ import annotations

import ast
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

FOLDERS = ("configs", "data", "trainer", "launch")


def under_convoy(source: str, name: str) -> str:
    """The source of a file with its imports of this project's modules from `convoy`.

    Args:
        source: Python.
        name: Of the file, for the message.

    Raises:
        SyntaxError: For `import configs.errors`, whose name another line may use.
    """
    lines = source.encode().splitlines(keepends=True)  # columns are bytes
    for node in ast.walk(ast.parse(source, name)):
        if isinstance(node, ast.Import):
            own = [alias.name for alias in node.names if alias.name.split(".")[0] in FOLDERS]
            if own:
                raise SyntaxError(f"{name}:{node.lineno}: write `from {own[0]} import ...`")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FOLDERS:
            line, column = lines[node.lineno - 1], node.col_offset
            given = f"from {node.module} "
            if node.level or not line[column:].startswith(given.encode()):
                raise SyntaxError(f"{name}:{node.lineno}: write `{given}import ...`")
            start = column + len("from ")
            lines[node.lineno - 1] = line[:start] + b"convoy." + line[start:]
    return b"".join(lines).decode()


class BuildUnderConvoy(build_py):
    """Copies the files, with their imports as they are where they are installed."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)  # a wheel takes all that lies there
        super().run()

    def build_module(self, module: Any, module_file: Any, package: Any) -> Any:
        built = super().build_module(module, module_file, package)
        source = Path(module_file).read_text(encoding="utf-8")
        Path(built[0]).write_text(under_convoy(source, str(module_file)), encoding="utf-8")
        return built


if __name__ == "__main__":
    found = find_packages(include=[f"{folder}*" for folder in FOLDERS])
    if "editable_wheel" in sys.argv:  # pip install --editable
        setup(packages=["convoy", *found])
    else:
        setup(
            packages=["convoy", *(f"convoy.{name}" for name in found)],
            package_dir={f"convoy.{folder}": folder for folder in FOLDERS},
            cmdclass={"build_py": BuildUnderConvoy},
        )
