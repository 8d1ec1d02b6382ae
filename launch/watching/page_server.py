"""The page of runs over HTTP, to this machine alone.

Any page in a browser, and any user of this machine, can send requests to a port of it. So every
address begins with a secret, requests must name this machine as their host (or a foreign name that
was made to point here could read), and only the page itself may write.
"""

from __future__ import annotations

import hmac
import http.server
import json
import logging
import re
import secrets
import sys
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

from configs.errors import InputError
from configs.read_files import parse_json
from launch.comparing.annotations import to_annotation
from launch.comparing.html import build_page
from launch.watching.runs_below import RunsBelow

log = logging.getLogger("convoy")
HOST = "127.0.0.1"
OURS = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.IGNORECASE)
"""Whom a request may name as its host; behind a tunnel the port is another one."""
MOST_BODY_BYTES = 1 << 17
SILENT_SECONDS = 20.0


class PageServer(http.server.ThreadingHTTPServer):
    """Serves one page about some runs.

    Args:
        runs: What the page is about.
        title: Text above it.
        port: 0 for any that is free.

    Raises:
        InputError: If the port is taken.
    """

    daemon_threads = True

    def __init__(self, runs: RunsBelow, title: str, port: int) -> None:
        self.runs = runs
        self.token = secrets.token_urlsafe(16)
        self.page, self.policy = build_page(title, {"live": True})
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise InputError(
                "--port",
                given=port,
                expected=f"a port that this user may open ({error.strerror})",
                remedy="Give another one, or leave it out to get one that is free.",
            ) from None

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is no error of ours; anything else is."""
        if not isinstance(sys.exception(), OSError):
            log.exception("a request for the page failed")


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: PageServer
    server_version, sys_version = "convoy", ""
    protocol_version = "HTTP/1.1"
    timeout = SILENT_SECONDS

    def do_GET(self) -> None:
        found = self._ours()
        if found is None:
            return
        name, query = found
        if name == "":
            self._send(self.server.page, "text/html; charset=utf-8")
        elif name == "data":
            version = query.get("since", "0")
            content = self.server.runs.since(
                int(version) if re.fullmatch(r"\d{1,9}", version) else 0
            )
            text = json.dumps(content, allow_nan=False, default=str, separators=(",", ":"))
            self._send(text.encode("utf-8", "replace"), "application/json")
        elif name == "picture":
            picture = self.server.runs.picture(query.get("run", ""), query.get("name", ""))
            if picture is None:
                self._refuse(HTTPStatus.NOT_FOUND, "there is no such picture")
            else:
                self._send(picture, "image/png")
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:
        self.close_connection = True  # of a body that is refused nothing is read
        found = self._ours()
        if found is None:
            return
        length = self.headers.get("Content-Length", "")
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip()
        if self.headers.get("Origin") != f"http://{self.headers.get('Host')}":
            self._refuse(HTTPStatus.FORBIDDEN, "only the page itself may write")
        elif found[0] != "note" or kind != "application/json":
            self._refuse(HTTPStatus.NOT_FOUND, "only notes can be written, as JSON")
        elif not re.fullmatch(r"\d{1,9}", length) or int(length) > MOST_BODY_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "this is longer than a note")
        else:
            self._annotate(self.rfile.read(int(length)))

    def _annotate(self, body: bytes) -> None:
        try:
            content = parse_json(body.decode("utf-8", "replace"))
            annotation = to_annotation(content)
            self.server.runs.annotate(str(content.get("run")), annotation)
        except ValueError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        else:
            self._send(b"{}", "application/json")

    def _ours(self) -> tuple[str, dict[str, str]] | None:
        """What is asked for, and the query; None for a request that was refused."""
        if not OURS.fullmatch(self.headers.get("Host", "")):
            self._refuse(HTTPStatus.FORBIDDEN, "this page is for its own machine only")
            return None
        address = urlsplit(self.path)
        token, slash, name = address.path.lstrip("/").partition("/")
        if not slash or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(
                HTTPStatus.FORBIDDEN,
                "open the whole address that the command printed, secret and all",
            )
            return None
        return name, {key: values[0] for key, values in parse_qs(address.query).items()}

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self.close_connection = True
        self._send(f"{why}\n".encode(), "text/plain; charset=utf-8", status)

    def _send(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Content-Security-Policy", self.server.policy + "; frame-ancestors 'none'"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Requests come every second: nobody wants to read of them."""
