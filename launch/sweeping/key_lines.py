"""Where the keys of a sweep file stand, for messages about them."""

from __future__ import annotations

from pathlib import Path


def key_lines(path: Path) -> dict[str, int]:
    """The line of each key at the top, and of each one below it as `parameters.KEY`.

    Args:
        path: A YAML file that has been read without an error.
    """
    import yaml

    found: dict[str, int] = {}

    def walk(node: yaml.Node | None, prefix: str, depth: int) -> None:
        if not isinstance(node, yaml.MappingNode) or depth == 0:
            return
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            found[name] = key.start_mark.line + 1
            walk(value, f"{name}.", depth - 1)

    walk(yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader), "", 2)
    return found
