"""Whatever is sent, the protocol gives back the same tensors or a ProtocolError, never anything else."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from optimizers.tensors import DTYPES, Array, TensorSpec, to_bytes
from router.ingress.protocol import ProtocolError, decode, encode

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
    """Whether a body decodes; anything but a ProtocolError is raised to the test."""
    try:
        decode(raw, length)
    except ProtocolError as error:
        assert "\n" not in str(error)
        return False
    return True


@settings(deadline=None)
@given(st.binary(max_size=200), LENGTHS)
def test_random_bytes_raise_nothing_but_a_protocol_error(raw: bytes, length: int | None) -> None:
    assert survives(raw, length) in (True, False)


@settings(max_examples=300, deadline=None)
@given(MESSAGE, st.binary(max_size=16), st.booleans())
def test_any_json_raises_nothing_but_a_protocol_error(message: Any, tail: bytes, binary: bool) -> None:
    head = orjson.dumps(message)
    assert survives(head + tail if binary else head, len(head) if binary else None) in (True, False)


@settings(max_examples=300, deadline=None)
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
