"""Bad requests and what each is told: for any model with one FP32 input, in memory or on a real server."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import orjson

from router.ingress.codec.protocol import HEADER_LENGTH

#: What a sentence for a caller never says: names from the inside.
INSIDE = re.compile(
    r"Traceback|\.py\b|\b(None|NoneType|True|False|dict|str|int|float|bool|tuple|ndarray|numpy|orjson"
    r"|[A-Za-z]*(Error|Exception))\b|<class|object at 0x"
)


@dataclass(frozen=True)
class Target:
    """The model that is asked: its input's name and the shape of a row of it, and the server's limits."""

    model: str
    input: str
    row: tuple[int, ...]
    rows: int
    body_bytes: int

    @property
    def infer(self) -> str:
        return f"/v2/models/{self.model}/infer"

    @property
    def width(self) -> int:
        return prod(self.row)

    def entry(self, **members: Any) -> dict[str, Any]:
        good = {"name": self.input, "datatype": "FP32", "shape": [1, *self.row], "data": [0.5] * self.width}
        return {name: value for name, value in {**good, **members}.items() if value is not ...}

    def body(self, entry: Mapping[str, Any] | None = None, **members: Any) -> bytes:
        return orjson.dumps({"inputs": [self.entry() if entry is None else entry], **members})

    def with_entry(self, **members: Any) -> bytes:
        return self.body(self.entry(**members))


Body = Callable[[Target], bytes]


@dataclass(frozen=True)
class Bad:
    """One bad request. ``said`` must all stand in its sentence: what is wrong, where, the mend."""

    what: str
    status: int
    said: tuple[str, ...]
    body: Body = field(default=lambda t: t.body())
    path: str = "/v2/models/{model}/infer"
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    #: Whether it gets past HAProxy, which answers for itself what has too many or too large headers.
    passes_proxy: bool = True


def _with_bytes(size: int, given: int) -> Body:
    """A binary input that announces ``size`` bytes, and is given some."""

    def make(t: Target) -> bytes:
        entry = t.entry(data=..., parameters={"binary_data_size": size})
        return t.body(entry) + bytes(given)

    return make


def the_headers(bad: Bad, body: bytes) -> dict[str, str]:
    """``{json}`` in a header stands for the length of the JSON part."""
    end = body.rfind(b"}") + 1
    return {name: value.replace("{json}", str(end)) for name, value in bad.headers.items()}


_BINARY = {HEADER_LENGTH: "{json}"}

TABLE: tuple[Bad, ...] = (
    # Paths and methods.
    Bad("another protocol", 404, ("/v1/models", "/v2"), path="/v1/models", method="GET"),
    Bad(
        "a model that is not there",
        404,
        ("no model 'nobody' here", "there is"),
        path="/v2/models/nobody/infer",
    ),
    Bad(
        "a variant that is not there",
        404,
        ("no variant 'nobody'", "it has"),
        path="/v2/models/{model}/versions/nobody/infer",
    ),
    Bad(
        "a request that is not there",
        404,
        ("no request 'nobody.1'",),
        path="/v2/requests/nobody.1",
        method="GET",
    ),
    Bad(
        "a path without end", 414, ("characters, 1000 are allowed",), path="/v2/" + "x" * 2_000, method="GET"
    ),
    Bad("a read of what is sent to", 405, ("GET is not allowed here", "use POST"), method="GET"),
    Bad("a put", 405, ("PUT is not allowed here", "use POST"), method="PUT"),
    # Queries.
    Bad(
        "a wait of an hour",
        400,
        ("wait='3600'", "0 to 60"),
        path="/v2/requests/{model}.1?wait=3600",
        method="GET",
    ),
    Bad(
        "a query misspelt",
        400,
        ("'outputs'", "output, binary"),
        path="/v2/requests/{model}.1?outputs=y",
        method="GET",
    ),
    Bad(
        "neither true nor false",
        400,
        ("binary='2'", "true or"),
        path="/v2/requests/{model}.1?binary=2",
        method="GET",
    ),
    # Headers.
    Bad(
        "a budget in words", 400, ("Latency-Budget-Ms", "not a number"), headers={"latency-budget-ms": "soon"}
    ),
    Bad("a budget below nothing", 400, ("out of range", "above 0"), headers={"latency-budget-ms": "-1"}),
    Bad("an endless budget", 400, ("out of range", "30 days"), headers={"latency-budget-ms": "1e12"}),
    Bad("an empty key", 400, ("Idempotency-Key", "1 to 200"), headers={"idempotency-key": ""}),
    Bad("a long key", 400, ("Idempotency-Key", "1 to 200"), headers={"idempotency-key": "k" * 201}),
    Bad("a length in words", 400, (HEADER_LENGTH, "length in bytes"), headers={HEADER_LENGTH: "ten"}),
    Bad("a length past the body", 400, (HEADER_LENGTH, "but the body has"), headers={HEADER_LENGTH: "99999"}),
    Bad(
        "too many headers",
        431,
        ("more headers", "100 headers"),
        headers={f"x-{n}": "y" for n in range(101)},
        passes_proxy=False,
    ),
    Bad(
        "a header too long", 431, ("more headers", "16384"), headers={"x-a": "y" * 17_000}, passes_proxy=False
    ),
    # Codings.
    Bad("an unknown coding", 415, ("'br' is not", "gzip or deflate"), headers={"content-encoding": "br"}),
    Bad("no gzip", 400, ("not gzip data", "leave it out"), headers={"content-encoding": "gzip"}),
    Bad(
        "half a gzip",
        400,
        ("cut off",),
        lambda t: gzip.compress(t.body())[:-9],
        headers={"content-encoding": "gzip"},
    ),
    Bad(
        "a bomb",
        413,
        ("the gzip body holds more", "limits.body", "in parts"),
        lambda t: gzip.compress(bytes(4 * t.body_bytes)),
        headers={"content-encoding": "gzip"},
    ),
    Bad(
        "a bomb in the other coding",
        413,
        ("the deflate body holds more", "limits.body", "in parts"),
        lambda t: zlib.compress(bytes(4 * t.body_bytes)),
        headers={"content-encoding": "deflate"},
    ),
    # Bodies.
    Bad("no body", 400, ("not JSON", "line 1"), lambda t: b""),
    Bad("half a body", 400, ("not JSON",), lambda t: t.body()[:-5]),
    Bad("nested without end", 400, ("nested too deep",), lambda t: b"[" * 5_000),
    Bad("a list", 400, ("JSON object with a list 'inputs'",), lambda t: b"[]"),
    Bad("a body too large", 413, ("limits.body", "in parts"), lambda t: t.body() + b" " * t.body_bytes),
    Bad("an input without a name", 400, ("each input", "'name'"), lambda t: t.with_entry(name=...)),
    Bad("a datatype that is none", 400, ('"FLOAT"', "known: BOOL"), lambda t: t.with_entry(datatype="FLOAT")),
    Bad("no datatype", 400, ("unknown datatype null", "known"), lambda t: t.with_entry(datatype=...)),
    Bad("no shape", 400, ("'shape' must be a list", "1 to 16"), lambda t: t.with_entry(shape=...)),
    Bad("a shape of null", 400, ("axis 0", "whole number"), lambda t: t.with_entry(shape=[None, *t.row])),
    Bad("a shape below nothing", 400, ("axis 0", "0 or more"), lambda t: t.with_entry(shape=[-1, *t.row])),
    Bad("a shape of terabytes", 400, ("axis 0", "2147483647"), lambda t: t.with_entry(shape=[1 << 40, 1])),
    Bad("a shape of gigabytes", 422, ("takes shape", "got"), lambda t: t.with_entry(shape=[1, 1 << 30])),
    Bad("17 axes", 400, ("1 to 16",), lambda t: t.with_entry(shape=[1] * 17)),
    Bad(
        "another shape than the model's",
        422,
        ("takes shape", "got"),
        lambda t: t.with_entry(shape=[*t.row, 1, 1]),
    ),
    Bad("no rows", 422, ("at least one row",), lambda t: t.with_entry(shape=[0, *t.row], data=[])),
    Bad(
        "too many rows",
        413,
        ("rows in one request", "limits.rows"),
        lambda t: t.with_entry(shape=[t.rows + 1, *t.row], data=[0] * ((t.rows + 1) * t.width)),
    ),
    Bad("too few data", 400, ("does not hold",), lambda t: t.with_entry(data=[])),
    Bad("ragged data", 400, ("ragged",), lambda t: t.with_entry(data=[[1], [2, 3]])),
    Bad("text for numbers", 400, ("does not fit", "FP32"), lambda t: t.with_entry(data=["a"] * t.width)),
    Bad("null for numbers", 400, ("does not fit", "FP32"), lambda t: t.with_entry(data=[None] * t.width)),
    Bad("null among numbers", 400, ("holds null", "NaN"), lambda t: t.with_entry(data=[None, *t.row])),
    Bad(
        "a tensor in shared memory",
        400,
        ("shared memory is not offered", "shared_memory_region"),
        lambda t: t.with_entry(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 4}),
    ),
    Bad(
        "classification",
        400,
        ("classification is not offered",),
        lambda t: t.body(t.entry(), outputs=[{"name": "y", "parameters": {"classification": 3}}]),
    ),
    Bad(
        "a sequence",
        400,
        ("keep no state", "sequence_id"),
        lambda t: t.body(t.entry(), parameters={"sequence_id": 7}),
    ),
    Bad("truths for numbers", 400, ("does not fit", "FP32"), lambda t: t.with_entry(data=[True] * t.width)),
    Bad(
        "a number too large", 400, ("out of the range", "FP32"), lambda t: t.with_entry(data=[1e39] * t.width)
    ),
    Bad(
        "another datatype",
        422,
        ("takes FP32", "got INT32"),
        lambda t: t.with_entry(datatype="INT32", data=[1] * t.width),
    ),
    Bad("another input", 422, ("is missing", "the model takes"), lambda t: t.with_entry(name="nobody")),
    Bad("an input twice", 400, ("given twice",), lambda t: orjson.dumps({"inputs": [t.entry(), t.entry()]})),
    Bad("an unknown output", 400, ("'nobody'", "gives"), lambda t: t.body(outputs=[{"name": "nobody"}])),
    Bad("a number as id", 400, ("'id' must be a string",), lambda t: t.body(id=5)),
    Bad("a long id", 400, ("'id'", "1000 characters"), lambda t: t.body(id="i" * 1_001)),
    Bad(
        "nested parameters",
        400,
        ('"a" is an object', "send a string"),
        lambda t: t.body(parameters={"a": {}}),
    ),
    Bad(
        "a budget of null",
        400,
        ("null is not a number",),
        lambda t: t.body(parameters={"latency_budget_ms": None}),
    ),
    Bad(
        "a budget of true",
        400,
        ("true is not a number",),
        lambda t: t.body(parameters={"latency_budget_ms": True}),
    ),
    Bad("no budget to speak of", 429, ("the budget is",), headers={"latency-budget-ms": "0.001"}),
    # Binary data.
    Bad("bytes missing", 400, ("announces 4096", "3 are left"), _with_bytes(4_096, 3), headers=_BINARY),
    Bad("bytes too many", 400, ("bytes follow the last",), lambda t: t.body() + bytes(7), headers=_BINARY),
    Bad("bytes of another shape", 400, ("takes", "got 3"), _with_bytes(3, 3), headers=_BINARY),
    Bad(
        "bytes below nothing",
        400,
        ("'binary_data_size'", "whole number"),
        _with_bytes(-1, 3),
        headers=_BINARY,
    ),
    Bad(
        "data twice",
        400,
        ("'data' or 'binary_data_size', not both",),
        lambda t: t.with_entry(parameters={"binary_data_size": 4}) + bytes(4),
        headers=_BINARY,
    ),
)


def check(bad: Bad, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """The answer is the right one: status, problem document, one sentence, nothing from the inside."""
    text = body.decode()
    assert status == bad.status, text
    assert headers["content-type"] == "application/problem+json", text
    told = orjson.loads(body)
    assert told["status"] == status
    assert told["title"]
    assert told["error"] == told["detail"]
    detail = told["detail"]
    assert 10 < len(detail) <= 400
    assert "\n" not in detail
    assert not INSIDE.search(detail), detail
    missing = [words for words in bad.said if words not in detail]
    assert not missing, detail
