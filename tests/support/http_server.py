"""A web server of files on this machine, and the wrong answers that it can give."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

Reply = Callable[[http.server.BaseHTTPRequestHandler, bytes], None]


def whole(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def not_found(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
    handler.send_error(404)


def other_content(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
    whole(handler, content[:-1] + bytes([content[-1] ^ 1]))


def web_page(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
    whole(handler, b"<html>Sign in to this network</html>")


def endless(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
    whole(handler, content * 50)


def trickle(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
    """A byte now and then, until the other side hangs up."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    with contextlib.suppress(OSError):
        for byte in content:
            handler.wfile.write(bytes([byte]))
            threading.Event().wait(0.05)


def without_end(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
    """Chunks without a length, until the other side hangs up."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b"1000\r\n" + bytes(0x1000) + b"\r\n")


def cut(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])


def cut_in_a_chunk(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"%x\r\n" % len(content) + content[: len(content) // 2])


def no_http(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")


def hang_up(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
    handler.close_connection = True


class Server:
    """Files under /NAME; /KIND/NAME answers with one of the replies above instead."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.requests: Counter[str] = Counter()
        self.replies: dict[str, Reply] = {"": whole}
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests[self.path] += 1
                kind, _, name = self.path.lstrip("/").rpartition("/")
                server.replies[kind](self, files[name])

            def log_message(self, *args: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        self.thread.start()

    def mirror(self, reply: Reply = whole) -> str:
        kind = "" if reply is whole else reply.__name__
        self.replies[kind] = reply
        return f"http://127.0.0.1:{self.http.server_port}/{kind}{'/' if kind else ''}"

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


def left_in(folder: Path) -> list[str]:
    """Whatever a download left in its folder or beside it, locks aside."""
    paths = folder.parent.rglob("*") if folder.parent.exists() else []
    return sorted(p.name for p in paths if p != folder and not p.name.endswith(".lock"))
