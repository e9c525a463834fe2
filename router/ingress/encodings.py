"""Compressed bodies: which codings there are, how far a body may grow, and when compressing an answer pays.

Bytes in, bytes out: no HTTP statuses. ``gzip`` is RFC 1952; ``deflate`` is zlib's format (RFC 1950), as
HTTP defines it and Triton's clients send it; the bare stream (RFC 1951) that some mean by it is read too.
"""

from __future__ import annotations

import zlib

#: What is understood, and what an answer may come in; the order is the server's preference.
CODINGS = ("gzip", "deflate")
ACCEPTED = ", ".join(CODINGS)
#: Below this a compressed answer is hardly shorter, and its sender waits longer than its reader gains.
WORTH_BYTES = 4 << 10
#: As many compressed bytes hold at most about 1,000 times as many, which take a millisecond or two: more than
#: that is not for an event loop.
INFLATE_HERE_BYTES = 2 << 10
#: Compressing takes some 10 ms a megabyte.
DEFLATE_HERE_BYTES = 64 << 10

_SAMPLE_BYTES = 4 << 10
#: A sample that does not shrink below this share of itself is left alone: measured numbers rarely do.
_WORTH_SHARE = 0.75
_LEVEL = 1  # two thirds of what the best level saves, in a tenth of its time
#: A gzip body may be several members one after the other (RFC 1952); each costs a restart.
_MAX_MEMBERS = 256
_SLICE_BYTES = 64 << 10
_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class EncodingError(ValueError):
    """A body that cannot be taken out of its coding; the message says why."""


class UnknownCoding(EncodingError):
    """A coding that is not understood, or more than one."""


class Oversized(EncodingError):
    """A body that would be over the limit once decompressed. No more than the limit was ever held."""


def coding_of(header: str) -> str | None:
    """The one coding that a ``Content-Encoding`` names; None for a body as it is.

    Raises `UnknownCoding`.
    """
    named = [name for part in header.lower().split(",") if (name := part.strip()) not in ("", "identity")]
    if not named:
        return None
    coding = named[0].removeprefix("x-")
    if len(named) > 1 or coding not in CODINGS:
        given = header if len(header) <= 40 else header[:37] + "..."
        raise UnknownCoding(
            f"Content-Encoding {given!r} is not supported; send {' or '.join(CODINGS)}, or the body as it is"
        )
    return coding


def decompress(body: bytes, coding: str, limit: int) -> bytes:
    """The bytes that ``body`` holds, at most ``limit`` of them.

    Raises `Oversized` as soon as there is one more, and `EncodingError` for what is broken or cut off.
    """
    window = _WINDOW[coding]
    if coding == "deflate" and not _is_zlib(body):
        window = -zlib.MAX_WBITS
    inflater, view = zlib.decompressobj(window), memoryview(body)
    parts, left, members, at = list[bytes](), limit, 1, 0
    data = b""
    while True:
        if not data:
            if at >= len(view):
                break
            data = bytes(view[at : at + _SLICE_BYTES])
            at += len(data)
        if inflater.eof:
            members += 1
            if coding != "gzip" or members > _MAX_MEMBERS:
                raise EncodingError(f"the body goes on after the end of its {coding} data")
            inflater = zlib.decompressobj(window)
        try:
            # One byte more than is allowed tells a body at the limit from one over it.
            parts.append(inflater.decompress(data, left + 1))
        except zlib.error:
            raise EncodingError(
                f"the body is not {coding} data; send what Content-Encoding says, or leave it out"
            ) from None
        left -= len(parts[-1])
        if left < 0:
            raise Oversized(f"the {coding} body holds more than the {limit} bytes that are allowed")
        data = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
    if not inflater.eof:
        raise EncodingError(f"the {coding} body is cut off before its end")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _is_zlib(body: bytes) -> bool:
    """Whether a body begins as RFC 1950 says: method 8, and a check value that divides by 31."""
    return len(body) >= 2 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0


def chosen(accept: str) -> str | None:
    """The coding for an answer by its ``Accept-Encoding`` (RFC 9110); None for none.

    A coding with ``q=0`` is refused, also where ``*`` would allow it; a broken weight counts as 0.
    """
    weights: dict[str, float] = {}
    for part in accept.lower().split(","):
        name, *options = (piece.strip() for piece in part.split(";"))
        weight = 1.0
        for option in options:
            key, _, value = option.partition("=")
            if key.strip() == "q":
                weight = _weight(value.strip())
        weights[name.removeprefix("x-")] = weight
    best, best_weight = None, 0.0
    for coding in CODINGS:
        weight = weights.get(coding, weights.get("*", 0.0))
        if weight > best_weight:
            best, best_weight = coding, weight
    # A caller who would rather have it as it is gets it so.
    return best if best_weight >= weights.get("identity", 0.0) else None


def _weight(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0.0 <= value <= 1.0 else 0.0


def compress(body: bytes, coding: str) -> bytes | None:
    """``body`` in a coding; None where it would hardly be shorter, which a piece from its middle tells."""
    if len(body) < WORTH_BYTES:
        return None
    at = (len(body) - _SAMPLE_BYTES) // 2
    sample = body[at : at + _SAMPLE_BYTES]
    if len(zlib.compress(sample, _LEVEL)) > _WORTH_SHARE * len(sample):
        return None
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW[coding])
    return packer.compress(body) + packer.flush()
