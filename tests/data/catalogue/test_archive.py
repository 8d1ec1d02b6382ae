"""A data set in one archive is fetched, verified and unpacked whole, and nothing else with it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs.errors import InputError
from data.catalogue import acquire as module
from data.catalogue import archive as archive_module
from data.catalogue.acquire import acquire, cache_folder
from data.catalogue.archive import extract
from data.catalogue.catalog import CATALOG
from data.catalogue.dataset_facts import ArchiveFacts, DatasetFacts
from tests.support.data_sets import make_cifar
from tests.support.http_server import Server, cut, left_in, other_content, whole

CIFAR = CATALOG["cifar10"]
Entries = dict[str, bytes | tarfile.TarInfo]


def tarred(entries: Entries) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in entries.items():
            if isinstance(content, bytes):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            else:
                tar.addfile(content)
    return out.getvalue()


def zipped(entries: Entries) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, content in entries.items():
            assert isinstance(content, bytes)
            file.writestr(name, content)
    return out.getvalue()


def facts_of(
    content: bytes, name: str = "toy.tar.gz", members: tuple[str, ...] = ()
) -> ArchiveFacts:
    return ArchiveFacts(
        name=name,
        num_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        folder="inner",
        members=members or tuple(file.name for file in CIFAR.files.values()),
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(params=["toy.tar.gz", "toy.zip"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[bytes, DatasetFacts]:
    """A small CIFAR-10 as its publisher would offer it, with more in it than is needed."""
    made = make_cifar(tmp_path / "made")
    entries: Entries = {f"inner/{path.name}": path.read_bytes() for path in sorted(made.iterdir())}
    entries |= {"inner/readme.html": b"<html>", "../outside": b"evil", "/tmp/absolute": b"evil"}
    pack = zipped if request.param.endswith(".zip") else tarred
    content = pack(entries)
    facts = dataclasses.replace(
        CIFAR,
        name="toy",
        archive=facts_of(content, request.param),
        mirrors=("http://127.0.0.1:9/",),
    )
    return content, facts


@pytest.fixture
def server(archive: tuple[bytes, DatasetFacts]) -> Iterator[Server]:
    content, facts = archive
    assert facts.archive is not None
    running = Server({facts.archive.name: content})
    yield running
    running.close()


def test_an_archive_is_fetched_once_and_its_files_are_published(
    archive: tuple[bytes, DatasetFacts], server: Server, tmp_path: Path
) -> None:
    """Law: the members asked for appear whole and together; no other entry is written anywhere."""
    _, facts = archive
    told: list[tuple[str, int, int]] = []
    found = acquire(facts, None, mirrors=(server.mirror(),), progress=lambda *now: told.append(now))
    for role, path in found.items():
        assert path == cache_folder(facts) / facts.files[role].name
        assert path.read_bytes() == (tmp_path / "made" / path.name).read_bytes()
    assert left_in(cache_folder(facts)) == sorted(path.name for path in found.values())
    assert told[-1][1] == told[-1][2] == len(archive[0])
    assert acquire(facts, None, mirrors=(server.mirror(),)) == found
    assert sum(server.requests.values()) == 1


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize("inner", ["", "toy"])
def test_an_archive_placed_by_hand_is_unpacked_without_a_network(
    inner: str, download: bool, archive: tuple[bytes, DatasetFacts], server: Server, tmp_path: Path
) -> None:
    content, facts = archive
    assert facts.archive is not None
    root = tmp_path / "root"
    (root / inner).mkdir(parents=True)
    (root / inner / facts.archive.name).write_bytes(content)
    found = acquire(facts, str(root), download=download, mirrors=(server.mirror(),))
    assert {path.parent for path in found.values()} == {root / "toy"}
    assert not server.requests


@pytest.mark.parametrize("reply", [cut, other_content])
def test_nothing_is_published_of_an_archive_that_came_broken(
    reply: Callable[..., None], archive: tuple[bytes, DatasetFacts], server: Server
) -> None:
    _, facts = archive
    assert facts.archive is not None
    with pytest.raises(InputError, match="'toy' is not on this machine") as caught:
        acquire(facts, None, mirrors=(server.mirror(reply),))
    assert f"{facts.archive.name}, or its folder inner" in str(caught.value)
    assert left_in(cache_folder(facts)) == []
    assert acquire(facts, None, mirrors=(server.mirror(reply), server.mirror(whole)))


def test_another_archive_of_that_name_is_refused(
    archive: tuple[bytes, DatasetFacts], tmp_path: Path
) -> None:
    content, facts = archive
    assert facts.archive is not None
    root = tmp_path / "root"
    root.mkdir()
    (root / facts.archive.name).write_bytes(content[:-1])
    with pytest.raises(InputError, match="is not the published archive") as caught:
        acquire(facts, str(root))
    assert facts.archive.sha256 in str(caught.value)
    assert [path.name for path in root.iterdir() if path.suffix != ".lock"] == [facts.archive.name]


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "entries",
    [
        {"inner/a.bin": link("inner/a.bin", "/etc/passwd")},
        {"x": b"content", "inner/a.bin": link("inner/a.bin", "x", tarfile.LNKTYPE)},
        {"inner/a.bin": link("inner/a.bin", "", tarfile.DIRTYPE)},
        {"inner/a.bin": link("inner/a.bin", "", tarfile.CHRTYPE)},
        {"inner/a.bin": link("inner/a.bin", "", tarfile.FIFOTYPE)},
        {"inner/a.bin": link("inner/a.bin", "", tarfile.GNUTYPE_SPARSE)},
        {"a.bin": b"in another folder"},
        {"inner/../inner/a.bin": b"by another path"},
    ],
    ids=[
        *("symbolic link", "hard link", "folder", "device", "pipe", "sparse"),
        *("elsewhere", "another path"),
    ],
)
def test_what_is_no_plain_file_of_that_name_is_refused(entries: Entries, tmp_path: Path) -> None:
    """Law: even an archive whose digest is right makes no file but its members, from itself."""
    content = tarred(entries)
    path = tmp_path / "toy.tar.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be unpacked"):
        extract(path, facts_of(content, members=("a.bin",)), tmp_path / "target")
    assert list((tmp_path / "target").iterdir()) == []


@pytest.mark.parametrize("name", ["toy.tar.gz", "toy.zip"])
def test_an_archive_that_cannot_be_read_is_refused_even_with_the_right_digest(
    name: str, tmp_path: Path
) -> None:
    for content in (b"", b"no archive", tarred({"inner/a.bin": bytes(9999)})[:60]):
        path = tmp_path / name
        path.write_bytes(content)
        target = tmp_path / f"target-{len(content)}"
        with pytest.raises(InputError, match="cannot be unpacked"):
            extract(path, facts_of(content, name, ("a.bin",)), target)


def bomb(name: str) -> bytes:
    """An archive whose one member unpacks to a thousand times its size."""
    out = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("inner/a.bin", bytes(1 << 21))
        return out.getvalue()
    return tarred({"inner/a.bin": bytes(1 << 21)})


@pytest.mark.parametrize("name", ["toy.tar.gz", "toy.zip"])
def test_a_member_that_unpacks_to_too_much_is_not_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "MOST_BYTES", 1 << 20)
    content = bomb(name)
    assert len(content) < 10_000
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be unpacked \(inner/a.bin has 2,097,152 bytes"):
        extract(path, facts_of(content, name, ("a.bin",)), tmp_path / "target")
    assert list((tmp_path / "target").iterdir()) == []


@pytest.mark.parametrize("flaw", ["lies about its size", "has a password", "unknown method"])
def test_a_zip_that_is_not_what_it_says_is_refused(flaw: str, tmp_path: Path) -> None:
    content = bytearray(bomb("toy.zip"))
    central = content.rindex(b"PK\x01\x02")
    if flaw == "lies about its size":
        content[central + 24 : central + 28] = (100).to_bytes(4, "little")
    elif flaw == "has a password":
        content[6] |= 1
        content[central + 8] |= 1
    else:
        content[8] = content[central + 10] = 77
    path = tmp_path / "toy.zip"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be unpacked"):
        extract(path, facts_of(bytes(content), "toy.zip", ("a.bin",)), tmp_path / "target")


def test_a_link_in_place_of_the_lock_is_not_followed(
    archive: tuple[bytes, DatasetFacts], server: Server, tmp_path: Path
) -> None:
    """Law: nobody's file is emptied."""
    _, facts = archive
    precious = tmp_path / "precious"
    precious.write_text("content")
    folder = cache_folder(facts)
    folder.parent.mkdir(parents=True)
    (folder.parent / f".{facts.folder}.lock").symlink_to(precious)
    with pytest.raises(InputError, match="is a symbolic link: remove it"):
        acquire(facts, None, mirrors=(server.mirror(),))
    assert precious.read_text() == "content"
