"""Who may read the page of runs, and who may write."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.errors import InputError
from launch.comparing.annotations import MOST_LETTERS
from launch.watching.page_server import PageServer
from launch.watching.runs_below import RunsBelow
from tests.support.sample_runs import write_run

Ask = Callable[..., tuple[int, str, dict[str, str]]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PageServer]:
    write_run(tmp_path / "runs/a")
    (tmp_path / "runs/a/b.png").write_bytes(b"\x89PNG\r\n\x1a\n rest")
    (tmp_path / "runs/a/c.png").write_text("<script>")
    runs = RunsBelow([tmp_path / "runs"], metric=None, by=None, by_seed=True)
    with PageServer(runs, "<runs>", 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def ask(server: PageServer) -> Ask:
    def ask(
        method: str, path: str, body: Any = None, token: str = server.token, **headers: str
    ) -> tuple[int, str, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        content = None if body is None else json.dumps(body)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, f"/{token}/{path}", content, named)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
        connection.close()
        return answer.status, text, dict(answer.getheaders())

    return ask


def test_the_page_and_its_data_are_for_who_knows_the_address(ask: Ask, tmp_path: Path) -> None:
    """Law: neither another token nor another name of this machine will do."""
    status, page, headers = ask("GET", "")
    assert status == 200
    assert "&lt;runs&gt;" in page
    assert "script-src 'sha256-" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store"
    source = str(tmp_path / "runs/a")
    [run] = json.loads(ask("GET", "data?since=0")[1])["runs"]
    assert run["id"] == source
    assert ask("GET", f"picture?run={source}&name=b.png")[2]["Content-Type"] == "image/png"
    for path in ("data?since=-1", "data?since=x", "data"):
        assert json.loads(ask("GET", path)[1])["runs"]
    for name in ("c.png", "../a/b.png", "metrics.jsonl", ""):
        assert ask("GET", f"picture?run={source}&name={name}")[0] == 404, name
    assert ask("GET", "../../etc/passwd")[0] == 404
    for token in ("", "x" * 22, "%C3%A9"):
        assert ask("GET", "data", token=token)[0] == 403
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil:80", "10.0.0.1"):
        assert ask("GET", "data", Host=host)[0] == 403, host
    assert ask("GET", "data", Host="localhost:8000")[0] == 200, "behind a tunnel"


def test_only_the_page_itself_may_write(ask: Ask, server: PageServer, tmp_path: Path) -> None:
    """Law: what another page could send is refused, and leaves nothing behind."""
    note = {"run": str(tmp_path / "runs/a"), "note": "fine", "tags": ["a", " a ", "b c"]}
    own = f"http://127.0.0.1:{server.server_port}"
    kind = {"Content_Type": "application/json"}
    path = tmp_path / "runs/a/notes.json"
    ask("GET", "data")
    for status, body, headers in (
        (403, note, kind),
        (403, note, kind | {"Origin": "http://evil.example"}),
        (403, note, kind | {"Origin": "null"}),
        (404, note, {"Origin": own, "Content_Type": "text/plain"}),
        (413, note | {"note": "x" * 200_000}, kind | {"Origin": own}),
        (400, note | {"note": "x" * (MOST_LETTERS + 1)}, kind | {"Origin": own}),
        (400, note | {"tags": "a"}, kind | {"Origin": own}),
        (400, note | {"run": str(tmp_path)}, kind | {"Origin": own}),
        (400, [], kind | {"Origin": own}),
    ):
        assert ask("POST", "note", body, **headers)[0] == status, (status, headers)
        assert not path.exists()
    assert ask("POST", "note", note, token="y", Origin=own, **kind)[0] == 403
    assert ask("POST", "note", note, Origin=own, **kind)[0] == 200
    assert json.loads(path.read_text()) == {"note": "fine", "tags": ["a", "b c"]}


def test_a_port_that_is_taken_is_said(server: PageServer) -> None:
    with pytest.raises(InputError, match=r"--port: given \d+.*Give another one"):
        PageServer(server.runs, "", server.server_port)
