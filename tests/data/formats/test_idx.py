"""IDX files: what is written is read back, and anything else is refused with an InputError."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from configs.errors import InputError
from data.formats.idx import DTYPES, read_idx
from tests.support.idx_files import write_idx

KINDS = ["u1", "i1", "i2", "i4", "f4", "f8"]
SMALL = settings(max_examples=50, deadline=None)

arrays = st.tuples(st.sampled_from(KINDS), st.sampled_from("<>")).flatmap(
    lambda kind: hnp.arrays(
        np.dtype(kind[1] + kind[0]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    )
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("idx_files")


def header(code: int, *shape: int) -> bytes:
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def refusal(path: Path, content: bytes, **arguments: Any) -> str:
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_idx(path, **arguments)
    assert str(path) in str(caught.value)
    return str(caught.value)


# -- round trips ---------------------------------------------------------------------------------


@SMALL
@given(array=arrays, suffix=st.sampled_from(["", ".gz"]), transposed=st.booleans())
def test_what_is_written_is_read_back_bit_for_bit(
    folder: Path, array: NDArray[Any], suffix: str, transposed: bool
) -> None:
    """Law: read(write(a)) == a for every dtype, byte order, shape and memory layout."""
    array = array.T if transposed else array
    path = folder / f"array{suffix}"
    write_idx(path, array)
    found = read_idx(path)
    assert found.shape == array.shape
    assert found.dtype == array.dtype.newbyteorder("=")
    assert found.dtype.isnative
    assert found.tobytes() == array.astype(found.dtype).tobytes()


@pytest.mark.parametrize(
    ("array", "content"),
    [
        (np.array([[1, 255]], "u1"), "00000802 00000001 00000002 01ff"),
        (np.array([-1], "i1"), "00000901 00000001 ff"),
        (np.array([[1], [-2]], "i2"), "00000b02 00000002 00000001 0001 fffe"),
        (np.array([258], "i4"), "00000c01 00000001 00000102"),
        (np.array([1.0], "f4"), "00000d01 00000001 3f800000"),
        (np.array([-2.0], "f8"), "00000e01 00000001 c000000000000000"),
        (np.array(7, "u1"), "00000800 07"),
        (np.zeros((0, 3), "i2"), "00000b02 00000000 00000003"),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, np.ndarray) else "",
)
def test_the_bytes_are_those_of_the_format(
    array: NDArray[Any], content: str, tmp_path: Path
) -> None:
    """The layout of http://yann.lecun.com/exdb/mnist/, written out by hand."""
    write_idx(tmp_path / "x", array)
    assert (tmp_path / "x").read_bytes() == bytes.fromhex(content)
    np.testing.assert_array_equal(read_idx(tmp_path / "x"), array)


def test_every_type_of_the_format_is_covered_here() -> None:
    assert sorted(dtype.str[1:] for dtype in DTYPES.values()) == sorted(KINDS)


def test_compression_is_told_by_the_content_not_by_the_name(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    write_idx(tmp_path / "x.gz", array)
    write_idx(tmp_path / "x", array)
    assert gzip.decompress((tmp_path / "x.gz").read_bytes()) == (tmp_path / "x").read_bytes()
    (tmp_path / "x.gz").rename(tmp_path / "y")
    (tmp_path / "x").rename(tmp_path / "z.gz")
    for name in ("y", "z.gz"):
        np.testing.assert_array_equal(read_idx(tmp_path / name), array)


def test_a_read_array_may_be_written_to(tmp_path: Path) -> None:
    """torch.from_numpy warns about arrays that may not be."""
    write_idx(tmp_path / "x", np.zeros(3, "u1"))
    assert read_idx(tmp_path / "x").flags.writeable


# -- broken files --------------------------------------------------------------------------------


@SMALL
@given(array=arrays, compress=st.booleans(), data=st.data())
def test_a_file_cut_anywhere_is_refused(
    folder: Path, array: NDArray[Any], compress: bool, data: st.DataObject
) -> None:
    """Law: no proper prefix of a file is a file, plain or compressed."""
    write_idx(folder / "whole", array)
    content = (folder / "whole").read_bytes()
    content = gzip.compress(content, mtime=0) if compress else content
    refusal(folder / "cut", content[: data.draw(st.integers(0, len(content) - 1))])


@SMALL
@given(array=arrays, extra=st.binary(min_size=1, max_size=20), compress=st.booleans())
def test_trailing_bytes_are_refused(
    folder: Path, array: NDArray[Any], extra: bytes, compress: bool
) -> None:
    write_idx(folder / "whole", array)
    content = (folder / "whole").read_bytes() + extra
    message = refusal(folder / "longer", gzip.compress(content) if compress else content)
    assert "trailing bytes" in message
    assert "as its header announces" in message


def test_bytes_after_a_compressed_file_are_refused(tmp_path: Path) -> None:
    content = gzip.compress(header(0x08, 2) + b"ab")
    refusal(tmp_path / "x.gz", content + b"garbage")
    refusal(tmp_path / "x.gz", content + gzip.compress(b"c"))


HEADS = st.builds(
    lambda code, shape: header(code, *shape),
    st.sampled_from(sorted(DTYPES)),
    st.lists(st.sampled_from([0, 1, 2, 2**16, 2**31, 2**32 - 1]), max_size=70),
)


@settings(max_examples=150, deadline=None)
@given(
    content=st.binary(max_size=80)
    | st.tuples(HEADS, st.binary(max_size=40)).map(b"".join)
    | st.tuples(HEADS, st.binary(max_size=40)).map(lambda parts: gzip.compress(b"".join(parts)))
    | st.binary(max_size=80).map(lambda tail: b"\x1f\x8b\x08\x00" + tail)
)
@example(b"")
@example(b"\x00\x00\x08")
@example(b"\x1f\x8b")
@example(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + b"\xff" * 50)
def test_no_bytes_raise_anything_but_an_input_error(folder: Path, content: bytes) -> None:
    """Law: read_idx is total: an array that the file spells out, or an InputError."""
    path = folder / "fuzzed"
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        assert read_idx(path).size < 100


@pytest.mark.parametrize(
    "content",
    [
        header(0x08, *[1] * 65) + b"x",
        header(0x08, *[1] * 255) + b"x",
        header(0x0E, 0, 2**32 - 1, 2**32 - 1),
        header(0x0E, 2**31, 2**31, 2**31, 0),
    ],
    ids=["65 dimensions", "255 dimensions", "0 x huge", "huge x 0"],
)
def test_a_shape_no_array_can_have_is_refused(content: bytes, tmp_path: Path) -> None:
    """The body is as long as the header says, and yet numpy cannot hold such an array."""
    refusal(tmp_path / "x", content)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("shape", [(2**32 - 1,), (2**32 - 1,) * 4, (60_000, 28, 28, 100)])
def test_a_lying_header_does_not_allocate_what_it_claims(
    shape: tuple[int, ...], compress: bool, tmp_path: Path
) -> None:
    content = header(0x0E, *shape) + b"few bytes"
    content = gzip.compress(content) if compress else content
    tracemalloc.start()
    try:
        assert "truncated" in refusal(tmp_path / "x", content)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_a_compressed_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """Law: nothing is read past the size the header announces."""
    content = gzip.compress(header(0x08, 10) + bytes(100 << 20), 1)
    tracemalloc.start()
    try:
        assert "trailing bytes" in refusal(tmp_path / "x.gz", content)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("position", [-8, -5, -4, -1])
def test_a_wrong_checksum_or_length_in_a_compressed_file_is_refused(
    position: int, tmp_path: Path
) -> None:
    """The last eight bytes of a .gz are the CRC and the length of its content."""
    content = bytearray(gzip.compress(header(0x08, 50) + bytes(range(50))))
    content[position] ^= 1
    refusal(tmp_path / "x.gz", bytes(content))


@SMALL
@given(flip=st.integers(0, 8 * 300 - 1))
def test_a_bit_flipped_in_the_body_of_a_compressed_file_is_refused(folder: Path, flip: int) -> None:
    body = np.random.default_rng(0).integers(0, 256, 300).astype("u1")
    content = bytearray(gzip.compress(header(0x08, 300) + body.tobytes()))
    content[20 + flip // 8] ^= 1 << flip % 8
    refusal(folder / "flipped.gz", bytes(content))


@pytest.mark.parametrize(
    "content",
    [b"\x01\x00\x08\x01", b"\x00\x01\x08\x01", b"\x00\x00\x0a\x01", b"PK\x03\x04", b"\x89PNG"],
)
def test_the_first_bytes_of_another_format_are_shown(content: bytes, tmp_path: Path) -> None:
    message = refusal(tmp_path / "x", content + bytes(100))
    assert "is not an IDX file" in message
    assert content.hex(" ") in message


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_idx(tmp_path / "nothing")
    with pytest.raises(InputError, match="cannot be read"):
        read_idx(tmp_path)


# -- digests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_digest_is_that_of_the_uncompressed_content(suffix: str, tmp_path: Path) -> None:
    array = np.arange(20, dtype=np.int32).reshape(4, 5)
    write_idx(tmp_path / "plain", array)
    write_idx(tmp_path / f"x{suffix}", array)
    right = hashlib.sha256((tmp_path / "plain").read_bytes()).hexdigest()
    np.testing.assert_array_equal(read_idx(tmp_path / f"x{suffix}", sha256=right), array)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_another_digest_is_refused_with_both(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    write_idx(path, np.arange(20, dtype=np.uint8))
    wrong = hashlib.sha256(b"something else").hexdigest()
    content = header(0x08, 20) + bytes(range(20))
    with pytest.raises(InputError) as caught:
        read_idx(path, sha256=wrong)
    message = str(caught.value)
    assert all(text in message for text in (str(path), wrong, hashlib.sha256(content).hexdigest()))


def test_the_header_is_part_of_the_digest(tmp_path: Path) -> None:
    """The same bytes under another shape are another file."""
    body = bytes(range(20))
    right = hashlib.sha256(header(0x08, 4, 5) + body).hexdigest()
    (tmp_path / "x").write_bytes(header(0x08, 4, 5) + body)
    assert read_idx(tmp_path / "x", sha256=right).shape == (4, 5)
    refusal(tmp_path / "x", header(0x08, 5, 4) + body, sha256=right)
