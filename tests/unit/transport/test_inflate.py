"""Content codings in all their forms, cut at any place, and invalid data."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyui.exceptions import InflateError
from comfyui.transport.inflate import Inflater, coding_of


def bare(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def unpacked(coding: str, *pieces: bytes) -> bytes:
    inflater = Inflater(coding)
    result = b"".join(part for piece in pieces for part in inflater.feed(piece))
    inflater.finish()
    return result


@pytest.mark.parametrize(
    ("coding", "pack"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", bare)],
)
@given(data=st.binary(max_size=300_000), cuts=st.lists(st.integers(0, 400), max_size=4))
def test_any_bytes_survive_in_any_pieces(coding: str, pack: object, data: bytes, cuts: list[int]) -> None:
    assert callable(pack)
    packed = pack(data)
    places = [0, *sorted(min(cut, len(packed)) for cut in cuts), len(packed)]
    assert unpacked(coding, *(packed[start:end] for start, end in pairwise(places))) == data


def test_gzip_may_have_several_members_and_padding() -> None:
    packed = gzip.compress(b"one ") + gzip.compress(b"two") + b"\0" * 100
    assert unpacked("gzip", packed) == b"one two"
    assert unpacked("gzip", *(bytes([byte]) for byte in gzip.compress(b"one"))) == b"one"


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        ("gzip", b"no gzip at all"),
        ("gzip", gzip.compress(b"whole", mtime=0)[:-4]),
        ("gzip", gzip.compress(b"whole", mtime=0)[:5]),
        ("gzip", gzip.compress(b"whole", mtime=0) + b"and more"),
        ("gzip", zlib.compress(b"zlib")),
        ("deflate", zlib.compress(b"whole" * 100)[:-6]),
        ("deflate", zlib.compress(b"whole") + b"\0x"),
        ("deflate", b"\xff\xff\xff"),
    ],
)
def test_data_that_does_not_have_its_coding_is_refused(coding: str, data: bytes) -> None:
    with pytest.raises(InflateError):
        unpacked(coding, data)


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 65_600, 131_072, 131_300])
def test_bytes_that_zlib_holds_back_at_the_end_of_a_piece_are_not_lost(size: int) -> None:
    assert len(unpacked("deflate", bare(bytes(size)))) == size
    assert len(unpacked("gzip", gzip.compress(bytes(size)))) == size


def test_an_empty_body_unpacks_to_an_empty_body() -> None:
    assert unpacked("gzip") == unpacked("gzip", b"") == b""


def test_a_compression_bomb_is_unpacked_in_small_pieces() -> None:
    packed = gzip.compress(bytes(200 << 20), 9)
    tracemalloc.start()
    try:
        largest = max(len(piece) for piece in Inflater("gzip").feed(packed))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert largest <= 64 * 1024
    assert peak < 2 << 20


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (None, None),
        ("", None),
        ("identity", None),
        ("GZip", "gzip"),
        ("identity, x-gzip", "x-gzip"),
        ("deflate", "deflate"),
    ],
)
def test_the_coding_is_read_from_its_header(header: str | None, coding: str | None) -> None:
    assert coding_of(header) == coding


@pytest.mark.parametrize("header", ["br", "zstd", "gzip, gzip", "gzip;q=1"])
def test_an_unsupported_coding_is_refused_by_name(header: str) -> None:
    with pytest.raises(ValueError, match=header.replace("+", r"\+")):
        coding_of(header)
