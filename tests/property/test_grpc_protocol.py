"""Random and damaged gRPC messages: read, or refused with a sentence; nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from optimizers.tensors import DTYPES, TensorSpec, to_bytes
from router.ingress.codec.protocol import MalformedRequest
from router.ingress.grpc.messages import message, parse
from tests.support.grpc_messages import decode, encode

FLAT = [name for name in DTYPES if name not in ("BYTES", "BF16")]


def reads_or_refuses(data: bytes) -> bool:
    """Whether the message was read; a refusal must be one line that a person can use."""
    try:
        asked = decode(parse("ModelInferRequest", data))
    except MalformedRequest as error:
        assert 10 < len(str(error)) < 2_000
        return False
    assert all(isinstance(array, np.ndarray) for array in asked.inputs.values())
    return True


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Well-formed messages whose members need not fit one another."""
    made: Any = message("ModelInferRequest")(model_name=draw(st.text(max_size=5)))
    for _ in range(draw(st.integers(0, 3))):
        tensor = made.inputs.add(
            name=draw(st.sampled_from(["x", "y", ""])),
            datatype=draw(st.sampled_from([*DTYPES, "INT9", ""])),
            shape=draw(st.lists(st.sampled_from([-1, 0, 1, 2, 3, 1 << 40, (1 << 63) - 1]), max_size=4)),
        )
        if draw(st.booleans()):
            tensor.contents.int_contents.extend(draw(st.lists(st.integers(-300, 300), max_size=6)))
            tensor.contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=4), max_size=6)))
    made.raw_input_contents.extend(draw(st.lists(st.binary(max_size=24), max_size=3)))
    encoded: bytes = made.SerializeToString()
    return encoded


@given(messages())
def test_members_that_do_not_fit_are_refused(data: bytes) -> None:
    assert reads_or_refuses(data) in (True, False)


@given(messages(), st.integers(0, 200), st.binary(max_size=8))
def test_damaged_messages_are_refused(data: bytes, at: int, patch: bytes) -> None:
    assert reads_or_refuses(data[:at] + patch + data[at + len(patch) // 2 :]) in (True, False)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    assert reads_or_refuses(data) in (True, False)


@given(
    st.sampled_from(FLAT).flatmap(
        lambda name: st.tuples(
            st.just(name),
            arrays.arrays(
                DTYPES[name],
                arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4),
                elements={"allow_nan": False} if DTYPES[name].kind == "f" else None,
            ),
        )
    )
)
def test_what_is_read_is_what_was_sent_and_the_answer_reads_the_same(sent: tuple[str, Any]) -> None:
    datatype, array = sent
    made = message("ModelInferRequest")(raw_input_contents=[bytes(to_bytes(array, datatype))])
    made.inputs.add(name="x", datatype=datatype, shape=array.shape)
    asked = decode(parse("ModelInferRequest", made.SerializeToString()))
    assert np.array_equal(asked.inputs["x"], array)
    spec = TensorSpec("x", datatype, array.shape)
    told = parse(
        "ModelInferResponse",
        encode(asked.inputs, [spec], asked, model="m", variant="v", request_id="", parameters={}),
    )
    assert list(told.raw_output_contents) == list(made.raw_input_contents)
    assert list(told.outputs[0].shape) == list(array.shape)
