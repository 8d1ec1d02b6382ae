"""A server's answer that was saved under the name of the file that was wanted."""

from __future__ import annotations

import zlib

from configs.errors import InputError

SNIFFED = 256
"""First bytes of a file that are enough to tell."""
STARTS = (b"<!doctype html", b"<html", b"<?xml", b"<head", b"<body")


def refuse_page(head: bytes, name: str) -> None:
    """Refuse a web page by its first bytes, compressed or not.

    Raises:
        InputError: If it is one.
    """
    if head[:2] == b"\x1f\x8b":
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, SNIFFED)
        except zlib.error:
            return
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(STARTS) and b"<svg" not in text:  # a drawing begins like XHTML
        raise InputError(
            name,
            given="a web page (HTML)",
            expected="the data themselves",
            remedy="A server answered with a page, such as an error or a login: download it again.",
        )
