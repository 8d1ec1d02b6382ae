"""Figures of matplotlib as PNG, with the letters of whatever script their texts are in."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

from configs.visible import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LETTERS = 200
MANY_LETTERS = ("Noto Sans CJK", "Noto Sans", "Source Han Sans", "WenQuanYi", "Droid Sans Fallback")
"""Beginnings of the names of fonts that have letters which matplotlib's own lacks."""


def as_text(text: str) -> str:
    """Text that matplotlib takes neither for mathematics nor for something to leave out."""
    text = visible(text).replace("$", r"\$")
    text = text if len(text) <= MOST_LETTERS else text[:MOST_LETTERS] + "..."
    return f" {text}" if text.startswith("_") else text


def png(figure: Figure, **options: Any) -> bytes:
    """A figure as the bytes of a PNG file.

    Letters are taken from an installed font that has them; those that none has become boxes, which
    is seen and needs no warning for each.
    """
    from matplotlib import font_manager
    from matplotlib.text import Text

    installed = sorted(set(font_manager.get_font_names()))
    others = [name for name in installed if name.startswith(MANY_LETTERS)]
    buffer = io.BytesIO()
    for text in figure.findobj(Text):
        text.set_fontfamily(["DejaVu Sans", *others])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(buffer, format="png", **options)
    return buffer.getvalue()
