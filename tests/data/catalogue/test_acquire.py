"""Data sets are found where they lie, else downloaded, verified and published by real HTTP."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import http.server
import pickle
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.errors import InputError
from data.catalogue import acquire as module
from data.catalogue.acquire import acquire, cache_folder, find_files
from data.catalogue.catalog import MNIST
from data.catalogue.dataset_facts import ROLES, DatasetFacts, FileFacts
from tests.support.http_server import (
    Reply,
    Server,
    cut,
    cut_in_a_chunk,
    endless,
    hang_up,
    left_in,
    no_http,
    not_found,
    other_content,
    trickle,
    web_page,
    whole,
    without_end,
)
from tests.support.idx_files import write_idx
from tests.support.processes import start, wait


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Four small .gz files by role, as a publisher would offer them."""
    folder = tmp_path_factory.mktemp("published")
    random = np.random.default_rng(0)
    found = {}
    for role in ROLES:
        shape = (300, 6, 5) if role.endswith("images") else (300,)
        write_idx(folder / f"{role}.gz", random.integers(0, 10, shape).astype(np.uint8))
        found[role] = (folder / f"{role}.gz").read_bytes()
    return found


@pytest.fixture
def toy(published: dict[str, bytes]) -> DatasetFacts:
    """A data set whose only mirror answers nothing."""
    files = {
        role: FileFacts(
            name=MNIST.files[role].name,
            gz_bytes=len(content),
            gz_sha256=hashlib.sha256(content).hexdigest(),
            sha256=hashlib.sha256(gzip.decompress(content)).hexdigest(),
        )
        for role, content in published.items()
    }
    dead = ("http://127.0.0.1:9/",)
    return dataclasses.replace(MNIST, name="toy", files=files, mirrors=dead, embedded=None)


@pytest.fixture
def server(toy: DatasetFacts, published: dict[str, bytes]) -> Iterator[Server]:
    files = {f"{toy.files[role].name}.gz": content for role, content in published.items()}
    running = Server(files)
    yield running
    running.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No waiting between rounds, no proxies, and a cache of the test's own."""
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def contents(paths: dict[str, Path]) -> dict[str, bytes]:
    return {role: path.read_bytes() for role, path in paths.items()}


def place(published: dict[str, bytes], folder: Path, facts: DatasetFacts, pattern: str) -> None:
    """Put the four files into a folder under one of the names they go by."""
    folder.mkdir(parents=True, exist_ok=True)
    for role, content in published.items():
        name = facts.files[role].name
        path = folder / pattern.format(name, dotted=name.replace("-idx", ".idx"))
        path.write_bytes(content if path.suffix == ".gz" else gzip.decompress(content))


# -- found on this machine -----------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["{}", "{}.gz", "{dotted}", "{dotted}.gz"])
@pytest.mark.parametrize("subfolder", ["", "toy"])
def test_files_are_found_in_the_root_or_below_it_plain_or_compressed(
    subfolder: str, pattern: str, published: dict[str, bytes], toy: DatasetFacts, tmp_path: Path
) -> None:
    """Law: data.root is the folder of the files, or the folder of their folder NAME."""
    place(published, tmp_path / "root" / subfolder, toy, pattern)
    found = acquire(toy, str(tmp_path / "root"))
    assert tuple(found) == ROLES
    for role, path in found.items():
        assert path.parent == tmp_path / "root" / subfolder
        plain = path.read_bytes() if path.suffix != ".gz" else gzip.decompress(path.read_bytes())
        assert plain == gzip.decompress(published[role])


def test_a_root_in_the_home_folder_may_be_written_with_a_tilde(
    published: dict[str, bytes],
    toy: DatasetFacts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    place(published, tmp_path / "sets", toy, "{}.gz")
    found = find_files(toy, "~/sets")
    assert found == {role: tmp_path / f"sets/{toy.files[role].name}.gz" for role in ROLES}


def test_an_incomplete_folder_is_not_a_data_set(
    published: dict[str, bytes], toy: DatasetFacts, tmp_path: Path
) -> None:
    place(published, tmp_path, toy, "{}.gz")
    (tmp_path / f"{toy.files['test_labels'].name}.gz").unlink()
    assert find_files(toy, str(tmp_path)) is None


def test_a_root_hides_the_embedded_files_and_the_cache(tmp_path: Path) -> None:
    """Law: who names a folder means that folder."""
    assert find_files(MNIST, str(tmp_path)) is None
    found = find_files(MNIST, None)
    assert found is not None
    assert {path.parent for path in found.values()} == {MNIST.embedded}


def test_the_cache_follows_xdg_and_else_the_home_folder(
    toy: DatasetFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder(toy) == tmp_path / "cache" / "convoy" / "toy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder(toy) == tmp_path / "home" / ".cache" / "convoy" / "toy"


# -- downloaded ----------------------------------------------------------------------------------


@pytest.mark.parametrize("with_root", [False, True])
def test_missing_files_are_downloaded_once_and_then_found(
    with_root: bool,
    server: Server,
    toy: DatasetFacts,
    published: dict[str, bytes],
    tmp_path: Path,
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    folder = root / "toy" if with_root else cache_folder(toy)
    given = str(root) if with_root else None
    found = acquire(toy, given, mirrors=(server.mirror(),))
    assert contents(found) == published
    assert {path.parent for path in found.values()} == {folder}
    assert left_in(folder) == sorted(path.name for path in found.values())
    assert acquire(toy, given, mirrors=(server.mirror(),)) == found
    assert sorted(server.requests.values()) == [1, 1, 1, 1]


def test_the_mirrors_of_the_catalogue_are_used_without_others(
    server: Server, toy: DatasetFacts, published: dict[str, bytes]
) -> None:
    facts = dataclasses.replace(toy, mirrors=(server.mirror().rstrip("/"),))
    assert contents(acquire(facts, None)) == published


def test_progress_is_told_of_every_file_up_to_its_last_byte(
    server: Server, toy: DatasetFacts
) -> None:
    told: dict[str, list[tuple[int, int]]] = {}

    def progress(name: str, received: int, expected: int) -> None:
        told.setdefault(name, []).append((received, expected))

    acquire(toy, None, mirrors=(server.mirror(),), progress=progress)
    assert list(told) == [file.name for file in toy.files.values()]
    for file in toy.files.values():
        steps = told[file.name]
        assert steps == sorted(steps)
        assert {expected for _, expected in steps} == {file.gz_bytes}
        assert steps[-1][0] == file.gz_bytes


BROKEN = [
    not_found,
    other_content,
    web_page,
    endless,
    without_end,
    cut,
    cut_in_a_chunk,
    no_http,
    hang_up,
]


@pytest.mark.parametrize("reply", BROKEN)
def test_the_next_mirror_stands_in_for_a_broken_one(
    reply: Reply, server: Server, toy: DatasetFacts, published: dict[str, bytes]
) -> None:
    """Law: whatever one mirror answers, a good one behind it is enough."""
    found = acquire(toy, None, mirrors=(server.mirror(reply), server.mirror()))
    assert contents(found) == published
    assert sum(server.requests.values()) == 8


def test_the_next_mirror_stands_in_for_one_that_hardly_sends(
    server: Server,
    toy: DatasetFacts,
    published: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law: a byte now and then does not keep a download waiting."""
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.2)
    found = acquire(toy, None, mirrors=(server.mirror(trickle), server.mirror()))
    assert contents(found) == published


def test_the_next_mirror_stands_in_for_one_that_cannot_be_reached(
    server: Server, toy: DatasetFacts, published: dict[str, bytes]
) -> None:
    assert contents(acquire(toy, None, mirrors=(*toy.mirrors, server.mirror()))) == published


def test_a_mirror_that_fails_once_is_tried_again(
    server: Server, toy: DatasetFacts, published: dict[str, bytes]
) -> None:
    def busy_at_first(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
        first = server.requests[handler.path] == 1
        handler.send_error(503) if first else whole(handler, content)

    assert contents(acquire(toy, None, mirrors=(server.mirror(busy_at_first),))) == published
    assert set(server.requests.values()) == {2}


# -- refused -------------------------------------------------------------------------------------


def refusal(facts: DatasetFacts, root: str | None, **arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        acquire(facts, root, **arguments)
    return str(caught.value)


@pytest.mark.parametrize("reply", BROKEN)
def test_nothing_is_published_when_no_mirror_has_the_file(
    reply: Reply, server: Server, toy: DatasetFacts
) -> None:
    """Law: a failed download leaves no file, no part of one and no temporary folder."""
    message = refusal(toy, None, mirrors=(server.mirror(reply),))
    assert server.mirror(reply) in message
    assert left_in(cache_folder(toy)) == []


def test_nothing_is_published_when_only_the_last_file_fails(
    server: Server, toy: DatasetFacts
) -> None:
    """Law: a data set appears whole or not at all."""

    def last_is_missing(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
        last = toy.files["test_labels"].name in handler.path
        handler.send_error(404) if last else whole(handler, content)

    refusal(toy, None, mirrors=(server.mirror(last_is_missing),))
    assert len(server.requests) == 4
    assert left_in(cache_folder(toy)) == []


def test_a_download_whose_content_is_another_is_not_published(
    server: Server, toy: DatasetFacts
) -> None:
    """The digest of the .gz may be right and that of what it holds wrong."""
    file = dataclasses.replace(toy.files["test_labels"], sha256="0" * 64)
    facts = dataclasses.replace(toy, files=toy.files | {"test_labels": file})
    assert "0" * 64 in refusal(facts, None, mirrors=(server.mirror(),))
    assert left_in(cache_folder(toy)) == []


@pytest.mark.parametrize("with_root", [False, True])
@pytest.mark.parametrize("download", [False, True])
def test_a_data_set_out_of_reach_is_answered_with_what_to_place_where(
    download: bool, with_root: bool, toy: DatasetFacts, tmp_path: Path
) -> None:
    root = str(tmp_path) if with_root else None
    folder = tmp_path / "toy" if with_root else cache_folder(toy)
    message = refusal(toy, root, download=download)
    assert "'toy' is not on this machine" in message
    assert all(f"{file.name}.gz" in message for file in toy.files.values())
    assert str(folder) in message
    assert "convoy prepare toy" in message
    assert ("data.download is false" in message) != download
    assert left_in(folder) == []


def test_a_mistyped_root_is_refused_and_not_made(
    server: Server, toy: DatasetFacts, tmp_path: Path
) -> None:
    missing = tmp_path / "mistyped"
    message = refusal(toy, str(missing), mirrors=(server.mirror(),))
    assert message.startswith(f"data.root: given {str(missing)!r}")
    assert not missing.exists()
    assert not server.requests


def test_download_false_asks_nobody(server: Server, toy: DatasetFacts) -> None:
    refusal(toy, None, download=False, mirrors=(server.mirror(),))
    assert not server.requests


def test_a_cache_that_cannot_be_written_is_refused_by_name(
    server: Server, toy: DatasetFacts, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    message = refusal(toy, None, mirrors=(server.mirror(),))
    assert f"cannot write to {cache_folder(toy)}" in message
    assert "--data.root" in message


# -- several processes ---------------------------------------------------------------------------

ACQUIRE = """
import pickle, sys
from pathlib import Path
from configs.errors import InputError
from data.catalogue import acquire
acquire.time.sleep = lambda seconds: None
facts, mirrors = pickle.loads(Path(sys.argv[1]).read_bytes())
Path(sys.argv[2]).touch()
try:
    print(sorted(acquire.acquire(facts, None, mirrors=mirrors).items()))
except InputError as error:
    sys.exit(f"refused: {error}")
"""


def two_at_once(
    server: Server, toy: DatasetFacts, reply: Reply, folder: Path
) -> tuple[list[Any], Counter[str]]:
    """Two processes that want one data set; the server answers only when both are waiting."""
    both_wait = threading.Event()

    def held(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
        both_wait.wait(60)
        reply(handler, content)

    order = folder / "order.pickle"
    order.write_bytes(pickle.dumps((toy, (server.mirror(held),))))
    started = [folder / "first", folder / "second"]
    processes = [start([sys.executable, "-c", ACQUIRE, str(order), str(path)]) for path in started]
    pause = threading.Event()  # time.sleep does not wait in this file
    while not (all(path.exists() for path in started) and server.requests):
        assert all(process.poll() is None for process in processes), wait(processes[0]).output
        pause.wait(0.02)
    # Time for the second process to reach the lock; without a lock, to send a request of its own.
    end = time.monotonic() + 0.5
    while sum(server.requests.values()) < 2 and time.monotonic() < end:
        pause.wait(0.02)
    both_wait.set()
    return [wait(process, 60) for process in processes], server.requests


@pytest.mark.process
def test_two_processes_at_once_download_once(
    server: Server, toy: DatasetFacts, published: dict[str, bytes], tmp_path: Path
) -> None:
    """Law: one process per machine downloads, the others wait and find the files."""
    finished, requests = two_at_once(server, toy, whole, tmp_path)
    assert [process.status for process in finished] == [0, 0], finished
    assert finished[0].stdout == finished[1].stdout
    assert sorted(requests.values()) == [1, 1, 1, 1]
    found = find_files(toy, None)
    assert found is not None
    assert contents(found) == published


@pytest.mark.process
def test_two_processes_at_once_are_both_told_what_to_place_where(
    server: Server, toy: DatasetFacts, tmp_path: Path
) -> None:
    """Law: the one that waited fails for the same reason as the one that tried."""
    finished, _ = two_at_once(server, toy, not_found, tmp_path)
    for process in finished:
        assert process.status == 1
        assert process.stderr.startswith("refused: data set 'toy' is not on this machine")


@pytest.mark.process
def test_a_downloader_that_was_killed_blocks_nobody(
    server: Server, toy: DatasetFacts, published: dict[str, bytes], tmp_path: Path
) -> None:
    never = threading.Event()

    def stuck(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
        never.wait(60)

    order = tmp_path / "order.pickle"
    order.write_bytes(pickle.dumps((toy, (server.mirror(stuck),))))
    process = start([sys.executable, "-c", ACQUIRE, str(order), str(tmp_path / "started")])
    pause = threading.Event()
    while not server.requests:
        assert process.poll() is None, wait(process).output
        pause.wait(0.02)
    process.kill()
    wait(process)
    never.set()
    assert contents(acquire(toy, None, mirrors=(server.mirror(),))) == published
