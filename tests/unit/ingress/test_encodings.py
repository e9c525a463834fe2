"""Compressed bodies: what is understood, what is refused, and how far a body may grow."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import numpy as np
import pytest

from router.ingress.encodings import (
    WORTH_BYTES,
    EncodingError,
    Oversized,
    UnknownCoding,
    chosen,
    coding_of,
    compress,
    decompress,
)

DATA = b"some bytes " * 1_000


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(DATA, mtime=0)),
        ("deflate", zlib.compress(DATA)),
        ("deflate", raw_deflate(DATA)),
        ("gzip", gzip.compress(DATA[:100]) + gzip.compress(b"", mtime=0) + gzip.compress(DATA[100:])),
    ],
    ids=["gzip", "zlib", "bare", "members"],
)
def test_what_the_codings_mean_is_read(coding: str, body: bytes) -> None:
    assert decompress(body, coding, len(DATA)) == DATA


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_long_bodies_are_read_piece_by_piece(coding: str) -> None:
    noise = np.random.default_rng(7).bytes(300_000)
    packed = gzip.compress(noise) if coding == "gzip" else zlib.compress(noise)
    assert decompress(packed, coding, 300_000) == noise


@pytest.mark.parametrize(
    ("coding", "body", "said"),
    [
        ("gzip", b"", "cut off"),
        ("gzip", gzip.compress(DATA, mtime=0)[:-1], "cut off"),
        ("deflate", zlib.compress(DATA)[:-1], "cut off"),
        ("gzip", b"no gzip at all", "not gzip data"),
        ("gzip", zlib.compress(DATA), "not gzip data"),
        ("deflate", b"\xff" * 20, "not deflate data"),
        ("gzip", gzip.compress(DATA, mtime=0) + b"rest", "not gzip data"),
        ("deflate", zlib.compress(DATA) + b"rest", "goes on after the end"),
        ("gzip", gzip.compress(b"", mtime=0) * 300, "goes on after the end"),
    ],
)
def test_what_is_broken_is_said(coding: str, body: bytes, said: str) -> None:
    with pytest.raises(EncodingError, match=said):
        decompress(body, coding, 1 << 20)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_the_limit_holds_to_the_byte(coding: str) -> None:
    packed = gzip.compress(DATA, mtime=0) if coding == "gzip" else zlib.compress(DATA)
    assert len(decompress(packed, coding, len(DATA))) == len(DATA)
    with pytest.raises(Oversized, match=f"more than the {len(DATA) - 1} bytes"):
        decompress(packed, coding, len(DATA) - 1)


def bomb() -> bytes:
    """The first 10 kB of gigabytes of zeros. Deflate cannot say more than 1,032 bytes in one."""
    packer, packed = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS), b""
    while len(packed) < 10_000:
        packed += packer.compress(bytes(1 << 20))
    return packed[:10_000]


def test_a_bomb_takes_no_more_memory_than_the_limit() -> None:
    packed = bomb()
    tracemalloc.start()
    try:
        with pytest.raises(Oversized):
            decompress(packed, "gzip", 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("GZIP", "gzip"),
        (" deflate ", "deflate"),
        ("identity", None),
        ("", None),
        ("identity, gzip", "gzip"),
    ],
)
def test_the_coding_of_a_body_is_named_by_its_header(header: str, coding: str | None) -> None:
    assert coding_of(header) == coding


@pytest.mark.parametrize("header", ["br", "zstd", "gzip, gzip", "gzip;q=1", "x" * 5_000])
def test_what_is_not_understood_names_what_is(header: str) -> None:
    with pytest.raises(UnknownCoding, match="send gzip or deflate") as caught:
        coding_of(header)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("gzip", "gzip"),
        ("gzip, deflate", "gzip"),
        ("deflate", "deflate"),
        ("gzip;q=0.5, deflate", "deflate"),
        ("gzip;q=0, deflate;q=0", None),
        ("gzip;q=0", None),
        ("*", "gzip"),
        ("*;q=0.3, gzip;q=0", "deflate"),
        ("br, zstd", None),
        ("identity", None),
        ("identity, gzip;q=0.5", None),
        ("gzip;q=2", None),
        ("gzip;q=nan", None),
        ("gzip; q=0.8; x=1", "gzip"),
        (",;,", None),
    ],
)
def test_an_answer_is_coded_as_its_reader_would_have_it(accept: str, coding: str | None) -> None:
    assert chosen(accept) == coding


def test_an_answer_is_compressed_only_where_that_makes_it_shorter() -> None:
    noise = np.random.default_rng(7).bytes(100_000)
    assert compress(noise, "gzip") is None
    assert compress(b"a" * (WORTH_BYTES - 1), "gzip") is None
    assert gzip.decompress(compress(DATA, "gzip") or b"") == DATA
    assert zlib.decompress(compress(DATA, "deflate") or b"") == DATA
