"""The part of W&B's GraphQL API that reading runs needs, served on this machine."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.sample_runs import Row


class Server(ThreadingHTTPServer):
    """The part of W&B's GraphQL API that reading runs needs."""

    daemon_threads = True

    def __init__(self, runs: dict[str, Row]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs = runs
        self.asked: list[tuple[str, Row]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def wandb_run(run_id: str, history: list[Row], **given: Any) -> Row:
    """A run as the server knows it; the history is a list of rows, config a plain mapping."""
    config = {key: {"value": value} for key, value in given.pop("config", {}).items()}
    return {
        "id": f"storage-{run_id}",
        "projectId": "1",
        "name": run_id,
        "displayName": f"run {run_id}",
        "tags": [],
        "sweepName": None,
        "state": "finished",
        "group": None,
        "jobType": None,
        "commit": None,
        "readOnly": False,
        "createdAt": "2026-01-01T00:00:00",
        "heartbeatAt": "2026-01-01T01:00:00",
        "description": "",
        "notes": None,
        "systemMetrics": "{}",
        "summaryMetrics": json.dumps(given.pop("summary", {})),
        "historyLineCount": len(history),
        "user": {"name": "u", "username": "u"},
        "config": json.dumps(config),
        "historyKeys": {"lastStep": len(history) - 1, "keys": {}} if history else None,
        "history": [{"_step": index, **row} for index, row in enumerate(history)],
        "metadata": given.pop("metadata", None),
        **given,
    }


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        """The one file of a run that is read: /files/RUN_ID/wandb-metadata.json."""
        run = self.server.runs.get(self.path.split("/")[2]) if "/files/" in self.path else None
        self.answer(200 if run else 404, json.dumps(run["metadata"] if run else None))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path != "/graphql":  # telemetry of the client
            self.answer(200, "")
            return
        request = json.loads(body)
        variables = request.get("variables") or {}
        self.server.asked.append((request["query"], variables))
        self.answer(200, json.dumps({"data": self.resolve(request["query"], variables)}))

    def resolve(self, query: str, variables: Row) -> Row:
        if "viewer" in query:
            return {
                "viewer": {
                    "id": "v", "entity": "team", "username": "u", "email": "u@example.org",
                    "flags": "{}", "teams": {"edges": []},
                }
            }  # fmt: skip
        if "query Runs(" in query:
            return {"project": self.project(variables)}
        names = (variables.get(key) for key in ("name", "runName", "run"))
        run = self.server.runs.get(next(filter(None, names), ""))
        if run is None:
            return {"project": {"run": None}}
        if "parquetHistory" in query:
            steps = [{"_step": row["_step"]} for row in run["history"]]
            history = {"parquetUrls": [], "liveData": steps}
            return {"project": {"run": {"parquetHistory": history}}}
        if "query HistoryPage" in query:
            page = range(int(variables["minStep"]), int(variables["maxStep"]))
            found = [json.dumps(row) for row in run["history"] if row["_step"] in page]
            return {"project": {"run": {"history": found}}}
        if "RunFiles" in query:
            return {"project": {"internalId": "1", "run": self.files(run)}}
        return {"project": {"run": run}}

    def project(self, variables: Row) -> Row:
        filters = json.loads(variables.get("filters") or "{}")
        chosen = [
            run
            for run in self.server.runs.values()
            if filters.get("group") in (None, run["group"])
            and (filters.get("tags") is None or filters["tags"] in run["tags"])
        ]
        edges = [{"node": run, "cursor": run["name"]} for run in chosen]
        page = {"endCursor": None, "hasNextPage": False}
        runs = {"edges": edges, "pageInfo": page}
        return {"internalId": "1", "runCount": len(edges), "readOnly": False, "runs": runs}

    def files(self, run: Row) -> Row:
        name = "wandb-metadata.json"
        url = f"{self.server.url}/files/{run['name']}/{name}"
        size = len(json.dumps(run["metadata"]))
        node = {
            "id": "f", "name": name, "url": url, "sizeBytes": str(size), "size": str(size),
            "directUrl": url, "mimetype": "text/json",
            "updatedAt": "2026-01-01T00:00:00", "md5": "", "digest": "",
        }  # fmt: skip
        edges = [{"node": node, "cursor": "f"}] if run["metadata"] else []
        page = {"endCursor": None, "hasNextPage": False}
        return {"fileCount": len(edges), "files": {"edges": edges, "pageInfo": page}}

    def answer(self, status: int, text: str) -> None:
        content = text.encode()
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)


@contextlib.contextmanager
def wandb_server(runs: list[Row]) -> Iterator[Server]:
    server = Server({run["name"]: run for run in runs})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def wandb_environment(home: Path, url: str = "http://127.0.0.1:9", key: str = "") -> dict[str, str]:
    """No account but the one given, and nothing of W&B's outside of `home`."""
    home.mkdir(exist_ok=True)
    found = {
        f"WANDB_{n}": str(home) for n in ("CACHE_DIR", "CONFIG_DIR", "DATA_DIR", "ARTIFACT_DIR")
    }
    found |= {"NETRC": str(home / "netrc"), "WANDB_BASE_URL": url, "WANDB_SILENT": "true"}
    return found | ({"WANDB_API_KEY": key} if key else {})
