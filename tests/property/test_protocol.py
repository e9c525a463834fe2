"""Whatever is sent, the protocol gives back the same tensors or a MalformedRequest, never anything else."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from optimizers.tensors import DTYPES, Array, TensorSpec, to_bytes
from router.ingress.codec import json_slices
from router.ingress.codec.protocol import MalformedRequest, decode, encode
from tests.support.effort import tries

SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)
NUMERIC = [name for name in DTYPES if name != "BYTES"]


def _bf16(array: Array) -> Array:
    """The nearest values that 16 bits hold: the codec's own, so that what is sent is what comes back."""
    bits = np.frombuffer(to_bytes(array, "BF16"), "<u2").astype("<u4") << 16
    return bits.view("<f4").reshape(array.shape)


@st.composite
def tensors(draw: st.DrawFn, finite: bool) -> tuple[TensorSpec, Array]:
    """A tensor of any datatype and shape; ``finite`` where JSON is to carry it."""
    datatype = draw(st.sampled_from(list(DTYPES)))
    shape = draw(SHAPES)
    if datatype == "BYTES":
        count = int(np.prod(shape))
        # JSON carries text only; a surrogate alone is none.
        text = st.text(max_size=5).map(str.encode)
        items = draw(st.lists(text if finite else st.binary(max_size=5), min_size=count, max_size=count))
        array = np.empty(count, dtype=object)
        array[:] = items
        return TensorSpec("x", datatype, shape), array.reshape(shape)
    floats: dict[str, Any] = {"allow_nan": False, "allow_infinity": False} if finite else {}
    elements = arrays.from_dtype(DTYPES[datatype], **floats)
    array = draw(arrays.arrays(DTYPES[datatype], shape, elements=elements))
    if datatype == "BF16":
        array = _bf16(np.where(np.abs(array) > 3e38, np.float32(0), array))
    return TensorSpec("x", datatype, shape), array


def same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.tolist() == other.tolist()


@settings(deadline=None)
@given(tensors(finite=True), st.booleans())
def test_every_datatype_comes_through_json(case: tuple[TensorSpec, Array], nested: bool) -> None:
    spec, array = case
    raw, length = encode({"x": array}, [spec], wanted=None, binary=False, envelope={})
    assert length is None
    entry = orjson.loads(raw)["outputs"][0]
    assert np.prod(entry["shape"]) == len(entry["data"])
    if nested and array.size and spec.datatype != "BYTES":
        entry["data"] = np.array(entry["data"]).reshape(array.shape).tolist()
    decoded = decode(orjson.dumps({"inputs": [entry]}), None).inputs["x"]
    assert same(decoded, array)


@settings(deadline=None)
@given(tensors(finite=False))
def test_every_datatype_comes_through_binary(case: tuple[TensorSpec, Array]) -> None:
    spec, array = case
    raw, length = encode({"x": array}, [spec], wanted=None, binary=True, envelope={})
    assert length is not None
    head = orjson.loads(raw[:length])
    request = orjson.dumps({"inputs": head["outputs"]})
    decoded = decode(request + raw[length:], len(request)).inputs["x"]
    assert decoded.dtype == array.dtype
    assert bytes(to_bytes(decoded, spec.datatype)) == bytes(to_bytes(array, spec.datatype))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
SIZES = st.lists(st.integers(-1, 4) | st.integers(2**31, 2**64 - 1), max_size=4)
ENTRY = st.fixed_dictionaries(
    {"name": st.just("x") | JSON, "datatype": st.sampled_from(list(DTYPES)) | JSON, "shape": SIZES | JSON},
    optional={
        "data": st.just([]) | JSON,
        "parameters": st.fixed_dictionaries({"binary_data_size": JSON}) | JSON,
    },
)
MESSAGE = st.fixed_dictionaries(
    {"inputs": st.lists(ENTRY | JSON, max_size=3) | JSON},
    optional={"outputs": JSON, "id": JSON, "parameters": JSON},
)
LENGTHS = st.none() | st.integers(-1, 300)


def survives(raw: bytes, length: int | None) -> bool:
    """Whether a body decodes; anything but a MalformedRequest is raised to the test."""
    try:
        decode(raw, length)
    except MalformedRequest as error:
        assert "\n" not in str(error)
        return False
    return True


@settings(deadline=None)
@given(st.binary(max_size=200), LENGTHS)
def test_random_bytes_raise_nothing_but_a_protocol_error(raw: bytes, length: int | None) -> None:
    assert survives(raw, length) in (True, False)


@settings(max_examples=tries(300), deadline=None)
@given(MESSAGE, st.binary(max_size=16), st.booleans())
def test_any_json_raises_nothing_but_a_protocol_error(message: Any, tail: bytes, binary: bool) -> None:
    head = orjson.dumps(message)
    assert survives(head + tail if binary else head, len(head) if binary else None) in (True, False)


@settings(max_examples=tries(300), deadline=None)
@given(st.data())
def test_a_mutated_request_raises_nothing_but_a_protocol_error(data: st.DataObject) -> None:
    entries = [
        {"name": "a", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
        {"name": "t", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 11}},
        {"name": "j", "datatype": "INT16", "shape": [2], "data": [1, -2]},
    ]
    head = orjson.dumps({"inputs": entries, "id": "r", "outputs": [{"name": "y"}]})
    raw = bytearray(head + bytes(8) + b"\x01\0\0\0a\x02\0\0\0bc")
    assert survives(bytes(raw), len(head))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    length = len(head) + data.draw(st.integers(-2, 2))
    assert survives(bytes(raw), length) in (True, False)


FULL = arrays.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4)
LISTS = st.recursive(
    st.lists(st.integers(-5, 300) | st.sampled_from([0.5, 1e39, True, None, "a", 'b"', "],[", '"data":[1]']))
    | arrays.arrays(np.int16, FULL).map(np.ndarray.tolist)
    | arrays.arrays("<U3", FULL, elements=st.sampled_from(["", "a", '"', "\\", "[", ",", "é"])).map(
        np.ndarray.tolist
    ),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


PUT = [b"", b"[", b"]", b",", b'"', b"1", b" ", b"\\", b"{", b"}", b"-", b"\x0b", b"NaN", b"null"]


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Requests with lists as data, right and wrong, some with a byte exchanged, left out or put in."""
    data, size = draw(LISTS), draw(st.integers(0, 9))
    datatypes = ["FP32", "INT16", "BYTES", "BOOL"]
    with contextlib.suppress(ValueError):
        array = np.array(data)
        if draw(st.integers(0, 4)):  # mostly what belongs together
            size, datatypes = array.size, ["BYTES"] if array.dtype.kind == "U" else ["FP32", "INT16"]
    entry = {"datatype": draw(st.sampled_from(datatypes)), "name": "x"}
    members: list[tuple[str, Any]] = [*entry.items(), ("data", data), ("shape", [size])]
    indent = draw(st.sampled_from([None, 1]))
    text = json.dumps({"inputs": [dict(draw(st.permutations(members)))], "id": "i"}, indent=indent).encode()
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        at = draw(st.integers(0, len(text) - 1))
        put = draw(st.sampled_from(PUT))
        text = text[:at] + put + text[at + draw(st.integers(0, 1)) :]
    return text


def outcome(text: bytes) -> Any:
    try:
        inputs = decode(text, None).inputs
    except MalformedRequest:
        return None
    return {name: (array.dtype.str, array.shape, repr(array.tolist())) for name, array in inputs.items()}


@settings(deadline=None, max_examples=tries(500))
@given(bodies())
def test_a_body_read_in_pieces_is_what_it_is_read_at_once(text: bytes) -> None:
    """With steps of a few bytes, as if the body were large: the same arrays, and nothing more is taken."""
    at_once = outcome(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_slices, "WHOLE_BYTES", 0)
        patch.setattr(json_slices, "_MIN_CUT_BYTES", 0)
        patch.setattr(json_slices, "STEP_BYTES", 40)
        in_pieces = outcome(text)
    assert in_pieces == at_once
