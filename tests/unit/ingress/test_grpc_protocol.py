"""gRPC messages to tensors and back: typed and raw, every datatype, parameters, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optimizers.tensors import DTYPES, Array, TensorSpec, to_bytes
from router.ingress.codec.protocol import MalformedRequest
from router.ingress.grpc.messages import message, parse
from router.ingress.grpc.peers import is_here
from router.ingress.grpc.protocol import set_values, values
from tests.support.every_datatype import sample
from tests.support.grpc_messages import decode, encode

TYPED = [name for name in DTYPES if name not in ("FP16", "BF16")]
FIELDS = {
    "BOOL": "bool",
    "FP32": "fp32",
    "FP64": "fp64",
    "BYTES": "bytes",
    "INT64": "int64",
    "UINT64": "uint64",
}


def typed_field(datatype: str) -> str:
    """By the specification's own words: 8, 16 and 32 bits share one field."""
    return FIELDS.get(datatype, "uint" if datatype.startswith("U") else "int") + "_contents"


def request(*inputs: tuple[str, str, list[int]], raw: list[bytes] | None = None, **fields: Any) -> Any:
    made = message("ModelInferRequest")(model_name="m", raw_input_contents=raw or [], **fields)
    for name, datatype, shape in inputs:
        made.inputs.add(name=name, datatype=datatype, shape=shape)
    return made


def same(left: Array, right: Array) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and bool(np.all(left == right))


@pytest.mark.parametrize("datatype", DTYPES)
def test_raw_contents_become_the_tensor(datatype: str) -> None:
    array = sample(3)[datatype.lower()]
    made = request(("x", datatype, [3, 2]), raw=[bytes(to_bytes(array, datatype))])
    asked = decode(parse("ModelInferRequest", made.SerializeToString()))
    assert asked.binary
    assert same(asked.inputs["x"], array)


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents_become_the_tensor(datatype: str) -> None:
    array = sample(3)[datatype.lower()]
    made = request(("x", datatype, [3, 2]))
    getattr(made.inputs[0].contents, typed_field(datatype)).extend(array.ravel().tolist())
    asked = decode(parse("ModelInferRequest", made.SerializeToString()))
    assert not asked.binary
    assert same(asked.inputs["x"], array)


def answer(array: Array, datatype: str, *, raw: bool) -> Any:
    asked = decode(request(raw=[])) if not raw else decode(request(("x", "INT8", [1]), raw=[b"\1"]))
    spec = TensorSpec("y", datatype, (-1, 2))
    encoded = encode(
        {"y": array}, [spec], asked, model="m", variant="v", request_id="7", parameters={"route": "r"}
    )
    return parse("ModelInferResponse", encoded)


@pytest.mark.parametrize("datatype", DTYPES)
def test_an_answer_is_raw_where_the_request_was(datatype: str) -> None:
    array = sample(2)[datatype.lower()]
    told = answer(array, datatype, raw=True)
    assert list(told.raw_output_contents) == [bytes(to_bytes(array, datatype))]
    assert (told.outputs[0].name, told.outputs[0].datatype, list(told.outputs[0].shape)) == (
        "y",
        datatype,
        [2, 2],
    )
    assert (told.model_version, told.id, told.parameters["route"].string_param) == ("v", "7", "r")


@pytest.mark.parametrize("datatype", TYPED)
def test_an_answer_is_typed_where_the_request_was(datatype: str) -> None:
    array = sample(2)[datatype.lower()]
    told = answer(array, datatype, raw=False)
    assert not told.raw_output_contents
    assert list(getattr(told.outputs[0].contents, typed_field(datatype))) == array.ravel().tolist()


def test_half_floats_have_no_typed_form_and_travel_raw() -> None:
    assert answer(sample(2)["fp16"], "FP16", raw=False).raw_output_contents


def test_text_from_a_runtime_is_utf8() -> None:
    text = np.array([["é", "b"]], dtype=object)
    assert list(answer(text, "BYTES", raw=False).outputs[0].contents.bytes_contents) == ["é".encode(), b"b"]


def test_only_the_outputs_that_are_asked_for_go() -> None:
    made = request(("x", "INT8", [1]), raw=[b"\1"])
    made.outputs.add(name="b")
    specs = [TensorSpec(name, "INT8", (-1,)) for name in "abc"]
    outputs = {name: np.array([1], np.int8) for name in "abc"}
    encoded = encode(outputs, specs, decode(made), model="m", variant="v", request_id="", parameters={})
    assert [output.name for output in parse("ModelInferResponse", encoded).outputs] == ["b"]


def test_parameters_keep_their_kind_both_ways() -> None:
    plain = {"flag": True, "timeout": 50_000, "share": 0.5, "name": "x"}
    made = request()
    set_values(made.parameters, plain)
    made.parameters["priority"].uint64_param = 2
    made.parameters["empty"].SetInParent()
    assert values(made.parameters) == {**plain, "priority": 2}
    assert type(values(made.parameters)["flag"]) is bool


def mend(change: Any) -> Any:
    made = request(("x", "INT8", [2]), raw=[b"\1\2"])
    change(made)
    return made


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda m: m.raw_input_contents.append(b""), "raw_input_contents has 2 entries for 1 inputs"),
        (lambda m: m.inputs[0].contents.int_contents.append(1), "'x': give 'contents' or raw_input_contents"),
        (lambda m: setattr(m.inputs[0], "datatype", "INT9"), "'x': unknown datatype 'INT9'"),
        (lambda m: m.inputs[0].shape.append(2), "'x': INT8 of shape [2, 2] takes 4 bytes, got 2"),
        (lambda m: m.inputs[0].shape.__setitem__(0, -1), "must be"),
        (lambda m: m.inputs[0].shape.extend([1] * 20), "'x': rank 21 is over the limit"),
        (lambda m: (m.inputs.add(name="x"), m.raw_input_contents.append(b"")), "'x' is given twice"),
        (lambda m: m.raw_input_contents.pop(), "shape [2] takes 2 elements, contents.int_contents has 0"),
        (lambda m: m.inputs[0].parameters["shared_memory_region"].SetInParent(), "'x': shared memory"),
        (
            lambda m: m.outputs.add(name="y").parameters["classification"].SetInParent(),
            "output 'y': classification is not offered",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_protocol_is_named(broken: Any, says: str) -> None:
    with pytest.raises(MalformedRequest) as raised:
        decode(mend(broken))
    assert says in str(raised.value)


@pytest.mark.parametrize(("datatype", "value"), [("INT8", 128), ("UINT16", 65_536), ("INT16", -32_769)])
def test_a_typed_value_out_of_range_is_not_wrapped(datatype: str, value: int) -> None:
    made = request(("x", datatype, [1]))
    getattr(made.inputs[0].contents, typed_field(datatype)).append(value)
    with pytest.raises(MalformedRequest, match=f"'x': {value} is out of the range of {datatype}"):
        decode(made)


def test_unsigned_numbers_of_64_bits_go_both_ways_exactly() -> None:
    values_sent = [2**64 - 1, 2**63 + 5, 0, 1]
    made = request(("x", "UINT64", [2, 2]))
    made.inputs[0].contents.uint64_contents.extend(values_sent)
    array = decode(made).inputs["x"]
    assert array.ravel().tolist() == values_sent
    told = answer(array, "UINT64", raw=False)
    assert list(told.outputs[0].contents.uint64_contents) == values_sent
    set_values(made.parameters, {"large": 2**64 - 1})
    assert values(made.parameters) == {"large": 2**64 - 1}


def test_half_floats_cannot_come_typed() -> None:
    with pytest.raises(MalformedRequest, match="BF16 has no typed contents; use raw_input_contents"):
        decode(request(("x", "BF16", [1])))


def test_bytes_that_are_no_message_are_named() -> None:
    with pytest.raises(MalformedRequest, match=r"no valid inference\.ModelInferRequest"):
        parse("ModelInferRequest", b"\xff\xff\xff")


@pytest.mark.parametrize(
    ("peer", "here"),
    [
        ("ipv4:127.0.0.1:4000", True),
        ("ipv6:[::1]:4000", True),
        ("ipv6:%5B::1%5D:4000", True),
        ("ipv6:[::ffff:127.0.0.1]:4000", True),
        ("unix:/run/x", True),
        ("ipv4:10.0.0.5:4000", True),
        ("ipv4:10.0.0.6:4000", False),
        ("ipv6:[2001:db8::1]:4000", False),
        ("unknown", False),
        ("", False),
    ],
)
def test_a_peer_is_on_this_machine_or_not(peer: str, here: bool) -> None:
    assert is_here(peer, {"10.0.0.5"}) is here
