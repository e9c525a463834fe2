"""A large JSON body without one long call: the tensors' ``data`` are cut out of it and read piece by piece.

Pure. A JSON parser holds the interpreter from the first byte of a body to its last, some 10 ms a megabyte,
in a thread as well. Here the long lists of numbers and of strings are cut out and read in steps of 64 KiB,
straight into their arrays; only what is left is parsed in one call.

What is cut out is JSON by the same parser, piece by piece; whether the lists are evenly nested shows in their
brackets and commas alone. Whatever does not look like such a list stays where it is.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from optimizers.tensors import DTYPES, MAX_RANK, Array
from router.ingress.codec.json_data import MalformedRequest, array_of
from router.ingress.codec.steps import STEP_BYTES, Steps

#: A JSON part up to this is parsed in one call.
WHOLE_BYTES = 128 << 10
#: Shorter lists stay in the body: parsing them costs less than cutting them out.
_MIN_CUT_BYTES = 4 << 10
#: What may be left of a body without its long lists: names and shapes need a thousandth of it.
MAX_REST_BYTES = 2 << 20
#: As many members may be called "data": twice as many as there may be inputs.
_MAX_LOOKS = 512
#: Stands for a list that was cut out. Nobody who sends a body can know it.
_MARK = secrets.token_hex(16)

_DATA = b'"data"'
_OPENS = re.compile(rb"[ \t\r\n]{0,64}:[ \t\r\n]{0,64}(?=\[)")
_TEXT = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_ONE_TEXT = re.compile(_TEXT, re.DOTALL)
_BRACKETS = re.compile(rb"(?:\[[ \t\r\n]*+){1,17}+")
#: A string that is followed by one more string of the same list.
#: What parts a string from the next of the same list.
_GAP = rb'[ \t\r\n]*+(?:,[ \t\r\n]*+|(?:\][ \t\r\n]*+)++,[ \t\r\n]*+(?:\[[ \t\r\n]*+)++)(?=")'
_ONE_GAP = re.compile(_GAP)
_LINKS = re.compile(rb"(?:" + _TEXT + _GAP + rb"){1,4000}+", re.DOTALL)
_CLOSES = re.compile(rb"(?:[ \t\r\n]*+\])++")
_WHITE = b" \t\r\n"
#: Of the bytes of a list of numbers: brackets and commas as they are, all others as 0.
_CLASSES = bytes(byte if byte in b"[]," else ord("0") for byte in range(256))
_NO_BRACKETS = bytes.maketrans(b"[]", b"  ")
_NOT_FINITE = re.compile(rb"NaN|Infinity")


@dataclass(frozen=True, slots=True)
class Cut:
    """A list that was cut out: where its pieces lie in the body, and its brackets and commas."""

    pieces: tuple[tuple[int, int], ...]
    skeleton: bytes
    texts: bool

    @property
    def count(self) -> int:
        """How many elements it has, if it is evenly nested."""
        return self.skeleton.count(b",") + 1


class Parts:
    """A parsed body and the lists that were cut out of it."""

    __slots__ = ("_body", "_cuts", "message")

    def __init__(self, body: bytes, message: Any, cuts: Mapping[str, Cut]) -> None:
        self._body, self.message, self._cuts = body, message, cuts

    def cut_at(self, data: Any) -> Cut | None:
        """The list that stood where ``data`` is now; None for data that stayed in the body."""
        return self._cuts.get(data) if isinstance(data, str) else None

    def array(self, cut: Cut, datatype: str, count: int, name: str) -> Steps[Array]:
        """The list as a flat array of ``count`` elements of ``datatype``. Raises `MalformedRequest`."""
        _check_even(cut, name)
        array, filled = np.empty(count, DTYPES[datatype]), 0
        for start, stop in cut.pieces:
            yield
            try:
                values = self._values(cut, start, stop)
            except ValueError as error:
                where = f"within the {stop - start} bytes from byte {start} on"
                raise MalformedRequest(f"the body is not JSON: input {name!r}, {where}: {error}") from None
            piece = array_of(values, datatype, name)
            if piece.ndim != 1 or filled + len(piece) > count:
                raise MalformedRequest(f"input {name!r}: 'data' is ragged or not of one kind")
            array[filled : filled + len(piece)] = piece
            filled += len(piece)
        if filled != count:
            raise MalformedRequest(f"input {name!r}: 'data' is ragged or not of one kind")
        return array

    def _values(self, cut: Cut, start: int, stop: int) -> list[Any]:
        text = self._body[start:stop]
        if not cut.texts:
            text = text.translate(_NO_BRACKETS)
        elif len(text) > STEP_BYTES:  # one long string, and what parts it from the next
            text = text[: text.rfind(b'"') + 1]
        else:
            text = b",".join(_ONE_TEXT.findall(text))
        values: list[Any] = loads(b"[" + text + b"]")
        return values


def loads(text: bytes) -> Any:
    """A value from JSON, in which NaN and Infinity may stand for numbers as Python's json writes them.

    Raises ValueError for anything else that is not JSON.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        # Half a surrogate pair, which Python's parser takes, is no text: leave such a body to the strict one.
        if not _NOT_FINITE.search(text) or b"\\ud" in text.lower():
            raise
    try:
        return json.loads(text.decode(), parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is out of the range of numbers")
    return value


def parts(body: bytes) -> Steps[Parts]:
    """The body of a request, parsed.

    Raises ValueError for what is not JSON, and `MalformedRequest` where too much of it is no tensor's data.
    """
    if len(body) <= WHOLE_BYTES:
        return Parts(body, loads(body), {})
    cuts: dict[str, Cut] = {}
    rest, kept = list[bytes](), 0
    at = body.find(_DATA)
    for _ in range(_MAX_LOOKS):
        if at < 0:
            break
        yield
        opens = _OPENS.match(body, at + len(_DATA))
        cut_and_end = None
        if opens is not None and _is_key(body, at):
            cut_and_end = yield from _cut(body, opens.end())
        end = at + len(_DATA)
        if opens is not None and cut_and_end is not None:
            cut, end = cut_and_end
            mark = f"{_MARK}.{len(cuts)}"
            cuts[mark] = cut
            rest += (body[kept : opens.end()], b'"', mark.encode(), b'"')
            kept = end
        at = body.find(_DATA, end)
    rest.append(body[kept:])
    size = sum(map(len, rest))
    if size > MAX_REST_BYTES:
        raise MalformedRequest(
            f"{size} bytes of the JSON are no lists of numbers or strings under 'data', {MAX_REST_BYTES} are "
            "allowed; send large tensors as binary data"
        )
    yield
    return Parts(body, loads(b"".join(rest)), cuts)


def _is_key(body: bytes, at: int) -> bool:
    """Whether the string at ``at`` begins where a member's name does, and not within another string."""
    before = body[max(0, at - 64) : at].rstrip(_WHITE)
    return before.endswith((b"{", b","))


def _cut(body: bytes, start: int) -> Steps[tuple[Cut, int] | None]:
    """The long list that begins at ``start``, and where it ends; None for what is none."""
    opens = _BRACKETS.match(body, start)
    assert opens is not None
    if body[opens.end() : opens.end() + 1] == b'"':
        return (yield from _cut_texts(body, start, opens.end()))
    end = _end_of_numbers(body, start)
    if end is None or end - start < _MIN_CUT_BYTES:
        return None
    pieces, skeleton, last, at = list[tuple[int, int]](), list[bytes](), b"", start
    while at < end:
        yield
        stop = min(at + STEP_BYTES, end)
        if stop < end:
            stop = body.rfind(b",", at, stop)
            if stop <= at:
                return None  # no number has as many digits
        pieces.append((at, stop))
        # With the comma after it, which parts it from the next.
        classes = body[at : stop + 1 if stop < end else end].translate(_CLASSES, _WHITE)
        joined = last + classes
        if b"0[" in joined or b"]0" in joined or b"[]" in joined:
            return None  # no JSON, or a list without elements
        last = classes[-1:]
        skeleton.append(classes.translate(None, b"0"))
        at = stop + 1 if stop < end else end
    return Cut(tuple(pieces), b"".join(skeleton), False), end


def _end_of_numbers(body: bytes, start: int) -> int | None:
    """Where a list ends that holds no string: before the next member's name, or before its object's brace."""
    end = body.find(b'"', start)
    brace = body.find(b"}", start, end if end >= 0 else len(body))
    if brace < 0 and end < 0:
        return None
    at = brace if brace >= 0 else end
    tail = body[max(start, at - 256) : at]
    left = tail.rstrip(_WHITE)
    if brace < 0:
        if not left.endswith(b","):
            return None
        left = left[:-1].rstrip(_WHITE)
    return at - (len(tail) - len(left)) if left.endswith(b"]") else None


def _cut_texts(body: bytes, start: int, first: int) -> Steps[tuple[Cut, int] | None]:
    pieces: list[tuple[int, int]] = []
    skeleton, at = [body[start:first]], first
    while True:
        yield
        links = _LINKS.match(body, at, at + STEP_BYTES)
        if links is not None:
            pieces.append(links.span())
            skeleton.append(_ONE_TEXT.sub(b"", links[0]))
            at = links.end()
            continue
        end = _end_of_text(body, at)
        if end is None:
            return None
        gap = _ONE_GAP.match(body, end)
        if gap is None:
            break
        pieces.append((at, gap.end()))
        skeleton.append(gap[0])
        at = gap.end()
    closes = _CLOSES.match(body, end)
    if closes is None or closes.end() - start < _MIN_CUT_BYTES:
        return None
    pieces.append((at, end))
    skeleton.append(closes[0])
    return Cut(tuple(pieces), b"".join(skeleton).translate(None, _WHITE), True), closes.end()


def _end_of_text(body: bytes, at: int) -> int | None:
    """Where the string that begins at ``at`` ends; a long one, an image say, without a look at each byte."""
    end = body.find(b'"', at + 1)
    if end >= 0 and body.find(b"\\", at + 1, end) < 0:
        return end + 1
    text = _ONE_TEXT.match(body, at)
    return None if text is None else text.end()


def _check_even(cut: Cut, name: str) -> None:
    """Raise `MalformedRequest` unless the brackets and commas are those of evenly nested lists."""
    skeleton = cut.skeleton
    depth = len(skeleton) - len(skeleton.lstrip(b"["))
    if depth > MAX_RANK:
        raise MalformedRequest(
            f"input {name!r}: 'data' is nested deeper than the {MAX_RANK} axes that are allowed"
        )
    block = b""
    for level in range(depth - 1, -1, -1):
        # The first list of this level ends where as many brackets close as it holds levels.
        closes = skeleton.find(b"]" * (depth - level)) + depth - level
        items, over = divmod(closes - level - 1, len(block) + 1)
        if over or items < 1 or items * (len(block) + 1) > len(skeleton):
            break
        block = b"[" + ((block + b",") * items)[:-1] + b"]"
    if block != skeleton:
        raise MalformedRequest(f"input {name!r}: 'data' is ragged or not of one kind")
