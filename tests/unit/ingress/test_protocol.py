"""Bodies of the Open Inference Protocol: what a request means, and the one sentence for a bad one."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import orjson
import pytest

from optimizers.tensors import DTYPES, TensorSpec
from router.ingress.codec.protocol import MalformedRequest, decode, encode
from router.service.errors import TooManyRows


def body(*inputs: dict[str, Any], **members: Any) -> bytes:
    return orjson.dumps({"inputs": list(inputs), **members})


def tensor(name: str = "x", datatype: str = "FP32", shape: Any = (1, 2), **members: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, **members}


def sized(size: Any, **members: Any) -> dict[str, Any]:
    return tensor(parameters={"binary_data_size": size}, **members)


def test_json_data_may_be_flat_or_nested() -> None:
    for data in ([1, 2, 3, 4], [[1, 2], [3, 4]], [[[1.0], [2.0]], [[3.0], [4.0]]]):
        (x,) = decode(body(tensor(shape=[2, 2], data=data)), None).inputs.values()
        assert x.dtype == np.float32
        assert x.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("datatype", "number", "nearest"),
    [("FP16", 2049, 2048), ("BF16", 257, 256), ("FP32", 16777217, 16777216), ("FP64", 2**53 + 1, 2**53)],
)
def test_a_number_in_json_for_a_float_is_rounded_to_the_nearest(
    datatype: str, number: int, nearest: int
) -> None:
    """JSON does not tell an integer from a float, so the server cannot refuse the one and take the other."""
    data = [number, float(number)]
    (x,) = decode(body(tensor(datatype=datatype, shape=[2], data=data)), None).inputs.values()
    assert x.tolist() == [nearest, nearest]


def test_binary_inputs_are_taken_in_order_beside_json_ones() -> None:
    a, b = np.arange(4, dtype="<f4").reshape(1, 4), np.array([[7, 8]], dtype="<i8")
    head = body(
        tensor("a", "FP32", [1, 4], parameters={"binary_data_size": 16}),
        tensor("j", "INT8", [1], data=[-5]),
        tensor("b", "INT64", [1, 2], parameters={"binary_data_size": 16}),
        id="req",
        parameters={"latency_budget_ms": 50},
    )
    request = decode(head + a.tobytes() + b.tobytes(), len(head))
    assert request.inputs["a"].tolist() == a.tolist()
    assert request.inputs["b"].tolist() == b.tolist()
    assert request.inputs["j"].tolist() == [-5]
    assert (request.id, request.parameters) == ("req", {"latency_budget_ms": 50})


def test_binary_numbers_are_not_copied() -> None:
    head = body(sized(8))
    message = head + bytes(8)
    array = decode(message, len(head)).inputs["x"]
    assert np.shares_memory(array, np.frombuffer(message, np.uint8))


@pytest.mark.parametrize(
    ("members", "outputs", "binary"),
    [
        ({}, None, False),
        ({"outputs": []}, None, False),
        ({"parameters": {"binary_data_output": True}}, None, True),
        ({"outputs": [{"name": "y"}]}, {"y": False}, False),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": True}}]}, {"y": True}, False),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "y", "parameters": {"binary_data": False}}, {"name": "z"}],
            },
            {"y": False, "z": True},
            True,
        ),
    ],
)
def test_the_caller_says_which_outputs_and_in_which_form(
    members: dict[str, Any], outputs: dict[str, bool] | None, binary: bool
) -> None:
    request = decode(body(tensor(data=[1, 2]), **members), None)
    assert (request.outputs, request.binary) == (outputs, binary)


HEAD = body(sized(8))
BAD: list[tuple[str, bytes, int | None, str]] = [
    ("no body", b"", None, "the body is not JSON"),
    ("half a body", body(tensor(data=[1, 2]))[:-3], None, "the body is not JSON"),
    ("not UTF-8", b'{"inputs": "\xff"}', None, "the body is not JSON"),
    ("nesting beyond reason", b"[" * 100_000, None, "the body is nested too deep"),
    ("not a number", b'{"inputs": [NaN]}', None, "each input must be a JSON object with a 'name'"),
    ("a list", b"[]", None, "must be a JSON object with a list 'inputs'"),
    ("no inputs", b"{}", None, "must be a JSON object with a list 'inputs'"),
    ("inputs as object", b'{"inputs": {}}', None, "must be a JSON object with a list 'inputs'"),
    ("input as number", b'{"inputs": [1]}', None, "each input must be a JSON object with a 'name'"),
    ("input without name", body({"shape": [1]}), None, "each input must be a JSON object with a 'name'"),
    ("name as number", body(tensor(name=3)), None, "each input must be"),  # type: ignore[arg-type]
    ("no datatype", body({"name": "x", "shape": [1], "data": [1]}), None, "'x': unknown datatype null"),
    ("wrong datatype", body(tensor(datatype="FLOAT", data=[1, 2])), None, 'unknown datatype "FLOAT"; known'),
    ("datatype as list", body(tensor(datatype=["FP32"], data=[])), None, "unknown datatype a list"),  # type: ignore[arg-type]
    ("datatype as object", body(tensor(datatype={}, data=[])), None, "unknown datatype an object"),  # type: ignore[arg-type]
    ("no shape", body({"name": "x", "datatype": "FP32", "data": [1]}), None, "'shape' must be a list of 1"),
    ("empty shape", body(tensor(shape=[], data=[1])), None, "'shape' must be a list of 1 to 16"),
    ("rank 17", body(tensor(shape=[1] * 17, data=[1])), None, "'shape' must be a list of 1 to 16"),
    (
        "negative size",
        body(tensor(shape=[-1, 2], data=[1, 2])),
        None,
        "of the shape must be a whole number of 0 or more",
    ),
    (
        "fractional size",
        body(tensor(shape=[1.0, 2], data=[1, 2])),
        None,
        "axis 0 of the shape must be a whole number",
    ),
    (
        "size as text",
        body(tensor(shape=["1"], data=[1])),
        None,
        "of the shape must be a whole number of 0 or more",
    ),
    (
        "true as size",
        body(tensor(shape=[True, 2], data=[1, 2])),
        None,
        "of the shape must be a whole number of 0 or more",
    ),
    (
        "a shape of terabytes",
        body(tensor(shape=[1 << 40], data=[1])),
        None,
        "axis 0 of the shape is over the limit",
    ),
    (
        "endless and empty",
        body(tensor(shape=[0, 1 << 63], data=[])),
        None,
        "axis 1 of the shape is over the limit",
    ),
    ("too few data", body(tensor(data=[1])), None, "shape [1, 2] does not hold 1 elements"),
    ("ragged data", body(tensor(data=[[1, 2], [3]])), None, "'data' is ragged or not of one kind"),
    ("no data", body(tensor()), None, "'data' is missing"),
    ("data as number", body(tensor(data=1)), None, "'data' must be a list"),
    ("data as object", body(tensor(data={"0": 1})), None, "'data' must be a list"),
    ("text for numbers", body(tensor(data=["1", "2"])), None, "'data' does not fit datatype FP32"),
    ("null for numbers", body(tensor(data=[1, None])), None, "'data' does not fit datatype FP32"),
    ("objects for numbers", body(tensor(data=[{}, {}])), None, "'data' does not fit datatype FP32"),
    ("fractions for INT32", body(tensor(datatype="INT32", data=[1.5, 2])), None, "does not fit datatype INT"),
    ("numbers for BOOL", body(tensor(datatype="BOOL", data=[0, 1])), None, "does not fit datatype BOOL"),
    ("truth for FP32", body(tensor(data=[True, False])), None, "does not fit datatype FP32"),
    (
        "truth among numbers",
        body(tensor(data=[True, 1])),
        None,
        "holds true or false among the numbers of FP32",
    ),
    ("truth deep inside", body(tensor(shape=[2, 2], data=[[1, 2], [3, False]])), None, "true or false among"),
    ("truth among INT8", body(tensor(datatype="INT8", data=[1, True])), None, "among the numbers of INT8"),
    (
        "a number among truths",
        body(tensor(datatype="BOOL", data=[True, 0])),
        None,
        "does not fit datatype BOOL",
    ),
    ("1e39 as FP32", body(tensor(data=[1, 1e39])), None, "1e+39 is out of the range of FP32"),
    ("70000 as FP16", body(tensor(datatype="FP16", data=[1, 70_000])), None, "out of the range of FP16"),
    ("1e39 as BF16", body(tensor(datatype="BF16", data=[1, 1e39])), None, "out of the range of BF16"),
    ("3.4e38 as BF16", body(tensor(datatype="BF16", data=[1, 3.4e38])), None, "out of the range of BF16"),
    (
        "UINT64 and -1",
        body(tensor(datatype="UINT64", data=[2**64 - 1, -1])),
        None,
        "out of the range of UINT64",
    ),
    ("infinity", b'{"inputs": [{"name": "x", "data": [1e400]}]}', None, "the body is not JSON"),
    ("half a size of shape", body(tensor(shape=[2**31 - 1] * 16, data=[1])), None, "larger than any array"),
    (
        "17 axes",
        body(tensor(shape=[1], data=orjson.loads("[" * 17 + "1" + "]" * 17))),
        None,
        "deeper than the 16",
    ),
    (
        "257 inputs",
        body(*[tensor(str(n), data=[1, 2]) for n in range(257)]),
        None,
        "257 inputs in one request",
    ),
    (
        "257 outputs",
        body(tensor(data=[1, 2]), outputs=[{"name": "y"}] * 257),
        None,
        "257 outputs in one requ",
    ),
    ("a name of 257", body(tensor("n" * 257, data=[1, 2])), None, "has 257 characters in its name, 256 are"),
    (
        "an output's name",
        body(tensor(data=[1, 2]), outputs=[{"name": "n" * 257}]),
        None,
        "257 characters in its",
    ),
    ("id of 1001", body(tensor(data=[1, 2]), id="i" * 1_001), None, "'id' must be a string of at most 1000"),
    ("101 parameters", body(parameters={str(n): n for n in range(101)}), None, "101 members"),
    (
        "a parameter's name",
        body(parameters={"n" * 257: 1}),
        None,
        "257 characters in its name, 256 are allowed",
    ),
    (
        "nested parameters",
        body(parameters={"a": {"b": 1}}),
        None,
        'parameter "a" is an object; send a string',
    ),
    ("300 as UINT8", body(tensor(datatype="UINT8", data=[1, 300])), None, "out of the range of UINT8"),
    ("-1 as UINT64", body(tensor(datatype="UINT64", data=[1, -1])), None, "out of the range of UINT64"),
    (
        "numbers for BYTES",
        body(tensor(datatype="BYTES", data=[1, 2])),
        None,
        "BYTES data in JSON must be str",
    ),
    ("ragged BYTES", body(tensor(datatype="BYTES", data=[["a"], ["b", "c"]])), None, "must be strings"),
    (
        "deep BYTES",
        body(tensor("x", "BYTES", [1], data=orjson.loads("[" * 99 + "]" * 99))),
        None,
        "input 'x'",
    ),
    ("the same input twice", body(tensor(data=[1, 2]), tensor(data=[1, 2])), None, "'x' is given twice"),
    (
        "id as number",
        body(tensor(data=[1, 2]), id=5),
        None,
        "'id' must be a string of at most 1000 characters",
    ),
    ("parameters as list", body(tensor(data=[1, 2]), parameters=[]), None, "'parameters' must be a JSON obj"),
    (
        "tensor parameters",
        body(tensor(parameters=3, data=[1, 2])),
        None,
        "'input x parameters' must be a JSO",
    ),
    ("outputs as object", body(tensor(data=[1, 2]), outputs={"y": 1}), None, "'outputs' must be a list"),
    ("output as text", body(tensor(data=[1, 2]), outputs=["y"]), None, "each output must be a JSON object"),
    ("output without name", body(tensor(data=[1, 2]), outputs=[{}]), None, "each output must be a JSON obje"),
    ("length 0", HEAD + bytes(8), 0, "inference-header-content-length is 0"),
    ("length past the body", HEAD, len(HEAD) + 1, f"but the body has {len(HEAD)} bytes"),
    ("length short", HEAD + bytes(8), len(HEAD) - 1, "the body is not JSON"),
    ("binary without length", HEAD + bytes(8), None, "the body is not JSON"),
    ("bytes missing", HEAD + bytes(7), len(HEAD), "'x' announces 8 binary bytes, 7 are left"),
    ("bytes too many", HEAD + bytes(9), len(HEAD), "1 bytes follow the last binary input"),
    ("negative bytes", body(sized(-1)), None, "must be a whole number of bytes"),
    ("bytes as text", body(sized("8")), None, "must be a whole number of bytes"),
    ("data and bytes", body(sized(8, data=[1, 2])) + bytes(8), len(body(sized(8, data=[1, 2]))), "not both"),
    ("bytes of another shape", body(sized(4)) + bytes(4), len(body(sized(4))), "takes 8 bytes, got 4"),
]


@pytest.mark.parametrize(("raw", "length", "said"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_a_bad_request_is_told_in_one_sentence(raw: bytes, length: int | None, said: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        decode(raw, length)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_byte_order_mark_is_passed_over() -> None:
    mark = b"\xef\xbb\xbf"
    assert decode(mark + body(tensor(data=[1, 2])), None).inputs["x"].tolist() == [[1, 2]]
    head = mark + body(sized(8))
    assert decode(head + bytes(8), len(head)).inputs["x"].tolist() == [[0, 0]]
    with pytest.raises(MalformedRequest, match="the body is not JSON"):
        decode(mark + mark + body(tensor(data=[1, 2])), None)


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
def test_what_is_not_finite_comes_in_as_pythons_json_writes_it(datatype: str) -> None:
    raw = json.dumps({"inputs": [tensor(datatype=datatype, shape=[2, 2], data=NOT_FINITE)]}).encode()
    array = decode(raw, None).inputs["x"]
    assert np.array_equal(array, np.array(NOT_FINITE), equal_nan=True)
    assert array.dtype == TensorSpec("x", datatype, (-1,)).dtype


NOT_FINITE = [[float("nan"), 1.5], [float("inf"), float("-inf")]]
NOT_TAKEN: list[tuple[str, str, str]] = [
    ("NaN as INT32", '"datatype": "INT32", "data": [NaN, 1]', "does not fit datatype INT32: it holds NaN"),
    ("NaN as BOOL", '"datatype": "BOOL", "data": [NaN, true]', "does not fit datatype BOOL: it holds NaN"),
    ("NaN as BYTES", '"datatype": "BYTES", "data": [NaN, "a"]', "BYTES data in JSON must be strings"),
    ("null as FP32", '"datatype": "FP32", "data": [null, 1]', "it holds null; write NaN for what is not a"),
    ("null as INT8", '"datatype": "INT8", "data": [null, 1]', "does not fit datatype INT8: it holds null"),
    ("nan in small letters", '"datatype": "FP32", "data": [nan, 1]', "the body is not JSON"),
    (
        "beyond all numbers",
        '"datatype": "FP32", "data": [NaN, 1e999]',
        "1e999 is out of the range of numbers",
    ),
    (
        "as a parameter",
        '"datatype": "FP32", "data": [1, 2]}], "parameters": {"a": NaN}, "z": [{"z": 1',
        "NaN",
    ),
    ("half a pair", '"datatype": "FP32", "data": [NaN, 2]}], "id": "\\ud800", "z": [{"z": 1', "not JSON"),
    ("too deep", '"datatype": "FP32", "data": [NaN, 2], "z": ' + "[" * 5_000 + "]" * 5_000, "too deep"),
    ("in the shape", '"datatype": "FP32", "data": [1, 2], "shape": [NaN]', "must be a whole number"),
]


@pytest.mark.parametrize(("members", "said"), [c[1:] for c in NOT_TAKEN], ids=[c[0] for c in NOT_TAKEN])
def test_what_is_not_finite_is_for_floating_point_data_alone(members: str, said: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        decode(f'{{"inputs": [{{"name": "x", "shape": [2], {members}}}]}}'.encode(), None)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


RANGES = [(name, np.iinfo(DTYPES[name])) for name in DTYPES if DTYPES[name].kind in "iu"]


@pytest.mark.parametrize(("datatype", "limits"), RANGES, ids=[name for name, _ in RANGES])
def test_whole_numbers_are_exact_to_the_last_and_the_first_beyond_is_named(
    datatype: str, limits: np.iinfo[Any]
) -> None:
    low, high = int(limits.min), int(limits.max)
    for data in ([low, high], [high - 1, low], [1, high]):
        array = decode(body(tensor(datatype=datatype, data=data)), None).inputs["x"]
        assert array.tolist() == [data]
        raw, _ = encode(
            {"x": array}, [TensorSpec("x", datatype, (-1, 2))], wanted=None, binary=False, envelope={}
        )
        assert orjson.loads(raw)["outputs"][0]["data"] == data
    for wrong in (low - 1, high + 1):
        raw_body = json.dumps({"inputs": [tensor(datatype=datatype, data=[1, wrong])]}).encode()
        with pytest.raises(MalformedRequest) as caught:
            decode(raw_body, None)
        # What does not even fit 64 bits is a decimal number to the parser.
        named = str(wrong) if -(2**63) <= wrong < 2**64 else f"it holds {float(wrong)}"
        assert named in str(caught.value) and datatype in str(caught.value)
    with pytest.raises(MalformedRequest, match=rf"it holds 1\.5; {datatype} takes whole numbers"):
        decode(body(tensor(datatype=datatype, data=[1, 1.5])), None)


Y = TensorSpec("y", "FP32", (-1, 2))
TEXT = TensorSpec("text", "BYTES", (-1,))
OUTPUTS = {"y": np.array([[1.5, 2.5]], "<f4"), "text": np.array([b"ab"], dtype=object)}


def test_an_answer_in_json_has_flat_data_and_no_length() -> None:
    raw, length = encode(OUTPUTS, [Y, TEXT], wanted=None, binary=False, envelope={"model_name": "m"})
    assert length is None
    assert orjson.loads(raw) == {
        "model_name": "m",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]},
            {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["ab"]},
        ],
    }


def test_only_what_is_wanted_is_sent_each_in_its_form() -> None:
    raw, length = encode(OUTPUTS, [Y, TEXT], wanted={"y": True}, binary=False, envelope={})
    assert length is not None
    (entry,) = orjson.loads(raw[:length])["outputs"]
    assert entry["parameters"] == {"binary_data_size": 8}
    assert raw[length:] == OUTPUTS["y"].tobytes()


def test_bytes_that_are_no_text_must_be_asked_for_as_binary() -> None:
    outputs = {"text": np.array([b"\xff"], dtype=object)}
    with pytest.raises(MalformedRequest, match="ask for it as binary data"):
        encode(outputs, [TEXT], wanted=None, binary=False, envelope={})
    raw, length = encode(outputs, [TEXT], wanted=None, binary=True, envelope={})
    assert raw[length:] == b"\x01\0\0\0\xff"


def test_every_datatype_goes_both_ways_in_json_with_the_values_it_can_hold() -> None:
    cases: list[tuple[str, list[Any], list[Any]]] = [
        ("BOOL", [True, False], [True, False]),
        ("UINT64", [2**64 - 1, 0], [2**64 - 1, 0]),
        ("INT64", [-(2**63), 2**63 - 1], [-(2**63), 2**63 - 1]),
        ("FP16", [0.1, 65_504], [0.0999755859375, 65_504.0]),
        ("BF16", [0.1, 3], [0.10009765625, 3.0]),
        ("FP32", [0.1, 1], [0.10000000149011612, 1.0]),
        ("FP64", [0.1, 1], [0.1, 1.0]),
        ("BYTES", ["\u00e9", ""], ["\u00e9".encode(), b""]),
    ]
    for datatype, sent, held in cases:
        array = decode(body(tensor(datatype=datatype, data=sent)), None).inputs["x"]
        assert array.tolist() == [held]
        spec = TensorSpec("x", datatype, (-1, 2))
        raw, _ = encode({"x": array}, [spec], wanted=None, binary=False, envelope={})
        again = orjson.loads(raw)["outputs"][0]
        assert decode(orjson.dumps({"inputs": [again]}), None).inputs["x"].tolist() == [held]


def test_bf16_in_json_and_in_binary_are_the_same_values() -> None:
    spec = TensorSpec("y", "BF16", (-1,))
    outputs = {"y": np.array([0.1, 1 / 3, 1e-30], "<f4")}  # as a model gives them, not yet rounded
    text, _ = encode(outputs, [spec], wanted=None, binary=False, envelope={})
    raw, length = encode(outputs, [spec], wanted=None, binary=True, envelope={})
    bits = np.frombuffer(raw[length:], "<u2").astype("<u4") << 16
    assert np.array(orjson.loads(text)["outputs"][0]["data"], "<f4").tolist() == bits.view("<f4").tolist()


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_json_has_no_word_for_is_refused_and_goes_as_binary(datatype: str, value: float) -> None:
    spec = TensorSpec("y", datatype, (-1,))
    outputs = {"y": np.array([1, value], spec.dtype)}
    with pytest.raises(MalformedRequest, match=r"'y' holds NaN or infinity, .* ask for it as binary data"):
        encode(outputs, [spec], wanted=None, binary=False, envelope={})
    assert encode(outputs, [spec], wanted={"y": True}, binary=False, envelope={})[1] is not None


def test_a_text_that_says_null_is_no_reason_to_refuse() -> None:
    raw, _ = encode(
        {**OUTPUTS, "text": np.array([b"null"], object)}, [Y, TEXT], wanted=None, binary=False, envelope={}
    )
    assert orjson.loads(raw)["outputs"][1]["data"] == ["null"]


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_too_many_rows_are_refused_before_any_is_read(datatype: str) -> None:
    """A million of the shortest strings would take half a second to part."""
    head = body(sized(4 << 20, shape=[1 << 20], datatype=datatype))
    with pytest.raises(TooManyRows, match=r"1048576 rows in one request; .*limits\.rows is 4096"):
        decode(head + bytes(4), len(head), 4_096)  # nor is it noticed that they are not there
    assert decode(body(tensor(data=[1, 2])), None, 1).inputs["x"].shape == (1, 2)


@pytest.mark.parametrize("shape", [[1 << 30], [1 << 20, 1 << 11], [(1 << 31) - 1]])
@pytest.mark.parametrize("datatype", ["FP64", "BYTES", "BF16"])
def test_a_shape_of_gigabytes_takes_no_memory(shape: list[int], datatype: str) -> None:
    head = body(sized(8, shape=shape, datatype=datatype))
    tracemalloc.start()
    try:
        for raw, length in ((body(tensor(shape=shape, data=[], datatype=datatype)), None), (head, len(head))):
            with pytest.raises(MalformedRequest):
                decode(raw if length is None else raw + bytes(8), length)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
