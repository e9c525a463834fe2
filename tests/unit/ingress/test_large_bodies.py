"""Large bodies and answers are worked on in small steps, between which everybody else has a turn."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from optimizers.tensors import TensorError, TensorSpec, to_bytes
from router.ingress.codec import json_slices, protocol
from router.ingress.codec.protocol import MalformedRequest
from router.ingress.codec.steps import STEP_BYTES, STEP_ITEMS, Steps
from router.ingress.grpc import protocol as grpc_protocol
from router.ingress.grpc.messages import message, parse
from router.ingress.turns import Turns
from tests.support.served import POLICY, serving
from tests.support.virtual_time import in_virtual_time

NUMBERS = np.random.default_rng(7).random((600, 64)).round(4).astype("<f4")
TEXTS = [f'text {n} with "quotes", [brackets], \\ and "data": [1, 2]' for n in range(9_000)]
X = TensorSpec("x", "FP32", (-1, 64))


def entry(data: Any, shape: Any, datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": datatype, "shape": shape, "data": data, **more}


def body(*inputs: dict[str, Any], dumps: Callable[..., Any] = orjson.dumps, **members: Any) -> bytes:
    written = dumps({"inputs": inputs, **members})
    return written if isinstance(written, bytes) else written.encode()


def counted(steps: Steps[Any]) -> tuple[Any, int]:
    """The result, and in how many steps."""
    count = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, count
        count += 1


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of what the JSON parser is given, one for each call."""
    lengths, parse = list[int](), orjson.loads

    def watched(text: bytes) -> Any:
        lengths.append(len(text))
        return parse(text)

    monkeypatch.setattr(json_slices, "orjson", type("orjson", (), {"loads": staticmethod(watched)}))
    json_slices.orjson.JSONDecodeError = orjson.JSONDecodeError  # type: ignore[misc]
    return lengths


ABOUT = {"name": "x", "datatype": "FP32", "shape": NUMBERS.shape}
LAYOUTS: list[tuple[str, bytes]] = [
    ("nested", body(entry(NUMBERS.tolist(), NUMBERS.shape))),
    ("flat", body(entry(NUMBERS.ravel().tolist(), NUMBERS.shape))),
    ("three levels", body(entry(NUMBERS.reshape(6, 100, 64).tolist(), NUMBERS.shape))),
    ("one by one", body(entry(NUMBERS.reshape(-1, 1).tolist(), NUMBERS.shape))),
    ("with blanks", body(entry(NUMBERS.tolist(), NUMBERS.shape), dumps=json.dumps)),
    ("indented", body(entry(NUMBERS.tolist(), NUMBERS.shape), dumps=lambda v: json.dumps(v, indent=2))),
    ("data first", body({"data": NUMBERS.tolist(), **ABOUT})),
    ("marked", b"\xef\xbb\xbf" + body(entry(NUMBERS.tolist(), NUMBERS.shape))),
    ("beside text", body(entry(NUMBERS.tolist(), NUMBERS.shape), id='a,"data":[1]', z={"data": [[]]})),
]


@pytest.mark.parametrize("raw", [layout[1] for layout in LAYOUTS], ids=[layout[0] for layout in LAYOUTS])
def test_a_large_list_of_numbers_is_read_in_steps_and_is_what_was_sent(raw: bytes, parsed: list[int]) -> None:
    request, steps = counted(protocol.decode_steps(raw, None, specs=[X]))
    assert np.array_equal(request.inputs["x"], NUMBERS) and request.inputs["x"].dtype == np.float32
    assert steps >= 2 * (len(raw) - 1_000) // STEP_BYTES  # once for its brackets, once for its numbers
    assert max(parsed) <= STEP_BYTES + 2


@pytest.mark.parametrize(
    "data", [TEXTS, np.array(TEXTS).reshape(-1, 1).tolist(), np.array(TEXTS).reshape(90, 50, 2).tolist()]
)
@pytest.mark.parametrize("dumps", [orjson.dumps, lambda value: json.dumps(value, indent=1)])
def test_so_is_a_list_of_strings(data: Any, dumps: Any, parsed: list[int]) -> None:
    raw = body(entry(data, [len(TEXTS)], "BYTES"), dumps=dumps)
    request, steps = counted(protocol.decode_steps(raw, None))
    assert request.inputs["x"].tolist() == [text.encode() for text in TEXTS]
    assert steps > len(raw) // STEP_BYTES and max(parsed) <= STEP_BYTES + 2


@pytest.mark.parametrize("written", ["y", 'y\\n"', "é"])
def test_long_strings_such_as_images_are_read_one_by_one(written: str, parsed: list[int]) -> None:
    texts = [written * 60_000, "short", written * 200_000, "", written * 200_000]
    for data in (texts, [[text] for text in texts]):
        request, steps = counted(protocol.decode_steps(body(entry(data, [5], "BYTES")), None))
        assert request.inputs["x"].tolist() == [text.encode() for text in texts]
        assert steps >= 5 and max(parsed) < len(body(entry([texts[-1]], [1], "BYTES")))


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("UINT64", [2**64 - 1, 0, 2**63 + 5]),
        ("INT64", [-(2**63), 2**63 - 1]),
        ("INT8", [-128, 127]),
        ("BOOL", [True, False]),
        ("FP64", [0.1, 3, -1e300]),
        ("FP16", [0.5, 65_504]),
        ("BF16", [0.5, 3]),
        ("FP32", [float("nan"), 1, float("-inf")]),
    ],
)
def test_every_datatype_comes_through_the_steps_as_through_one(datatype: str, values: list[Any]) -> None:
    data = values * 40_000
    raw = body(entry(data, [len(data)], datatype), dumps=json.dumps)
    assert len(raw) > json_slices.WHOLE_BYTES
    few = protocol.decode(body(entry(values, [len(values)], datatype), dumps=json.dumps), None).inputs["x"]
    many = protocol.decode(raw, None).inputs["x"]
    assert many.dtype == few.dtype
    assert np.array_equal(many, np.tile(few, 40_000), equal_nan=few.dtype.kind == "f")


MANY = orjson.dumps(NUMBERS.tolist()).decode()
BAD: list[tuple[str, str, str, str]] = [
    ("ragged", f"[{MANY[1:-1]},[1.0]]", "FP32", "'data' is ragged or not of one kind"),
    ("one too deep", f"[{MANY[1:-1]},[[{'1,' * 63}1]]]", "FP32", "'data' is ragged"),
    ("a hole", MANY.replace("],[", "],,[", 1), "FP32", "'data' is ragged"),
    ("two numbers in one place", MANY.replace(",", " ", 1), "FP32", "'data' is ragged"),
    ("a number before a list", MANY.replace("[0.", "0.[", 1), "FP32", "not JSON"),
    ("not a number", MANY.replace("0.", "x.", 1), "FP32", "the body is not JSON: input 'x', within"),
    ("null", MANY.replace(",", ",null,", 1), "FP32", "'data' is ragged"),
    ("null among", "[" + "1," * 99_999 + "null]", "FP32", "holds null; write NaN for what is not a number"),
    ("truth among numbers", "[" + "1," * 99_999 + "true]", "FP32", "holds true or false among the numbers"),
    ("fractions as INT32", MANY, "INT32", "'data' does not fit datatype INT32: it holds 0."),
    ("numbers as BYTES", MANY, "BYTES", "BYTES data in JSON must be strings"),
    ("300 as UINT8", "[" + "1," * 99_999 + "300]", "UINT8", "300 is out of the range of UINT8"),
    ("text as numbers", orjson.dumps(TEXTS).decode(), "FP32", "it holds \"text 0 with"),
    ("17 levels", "[" * 16 + MANY + "]" * 16, "FP32", "nested deeper than the 16 axes"),
    ("cut off", MANY[:-9], "FP32", "is not JSON"),
    ("empty lists", "[" + "[]," * 99_999 + "[]]", "FP32", "does not hold 0 elements"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "datatype", "said"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_what_is_wrong_in_a_large_list_is_told_in_one_sentence(data: str, datatype: str, said: str) -> None:
    count = len(TEXTS) if data.startswith('["') else data.count(",") + 1
    raw = f'{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":[{count}],"data":{data}}}]}}'.encode()
    assert len(raw) > json_slices.WHOLE_BYTES
    with pytest.raises(MalformedRequest) as caught:
        protocol.decode(raw, None)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_a_shape_that_is_not_the_models_is_refused_before_any_data_are_read(
    parsed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the data were read")

    monkeypatch.setattr(protocol, "array_of", never)
    monkeypatch.setattr(json_slices, "array_of", never)
    for small in (NUMBERS, NUMBERS[:2]):
        for shape, datatype, said in (
            ([600, 63], "FP32", r"takes shape \[-1, 64\] .* got \[600, 63\]"),
            ([600], "FP32", r"got \[600\]"),
            ([600, 64], "INT32", "the model takes FP32, got INT32"),
        ):
            with pytest.raises(TensorError, match=said):
                protocol.decode(body(entry(small.tolist(), shape, datatype)), None, specs=[X])
        with pytest.raises(TensorError, match="input 'x' is missing"):
            protocol.decode(body(entry(small.tolist(), [600, 64]) | {"name": "y"}), None, specs=[X])
        with pytest.raises(MalformedRequest, match=r"shape \[7, 64\] does not hold"):
            protocol.decode(body(entry(NUMBERS.tolist(), [7, 64])), None, specs=[X])
    assert max(parsed) < STEP_BYTES


@pytest.mark.parametrize(
    "raw",
    [
        b'{"inputs": [' + b'{"a":1},' * 700_000 + b"1]}",
        b"[" * 3_000_000,
        b'{"inputs": [{"data": ' + b"[" * 3_000_000,
        b'{"inputs": [{"data": [' + b"{}," * 1_000_000 + b"{}]}]}",
        b'{"inputs": [' + b'"data",' * 700_000 + b"1]}",
    ],
    ids=["objects", "brackets", "brackets as data", "objects as data", "names"],
)
def test_json_that_is_no_tensor_is_bounded(raw: bytes, parsed: list[int]) -> None:
    steps = protocol.decode_steps(raw, None)
    with pytest.raises(MalformedRequest, match="are no lists of numbers or strings under 'data'"):
        counted(steps)
    assert not parsed


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "BF16", "BYTES", "UINT64", "BOOL"])
@pytest.mark.parametrize("binary", [True, False])
def test_a_large_answer_is_written_in_steps(datatype: str, binary: bool) -> None:
    count = 5 * STEP_ITEMS + 3
    spec = TensorSpec("y", datatype, (-1, 1))
    few: list[Any] = [b"a", b'"'] if datatype == "BYTES" else [True, False] if datatype == "BOOL" else [1, 2]
    array = np.array([few[n % 2] for n in range(count)], dtype=spec.dtype).reshape(-1, 1)
    steps = protocol.encode_steps({"y": array}, [spec], wanted=None, binary=binary, envelope={"a": 1})
    (raw, length), count_steps = counted(steps)
    assert count_steps >= 5 or (binary and datatype not in ("BYTES", "BF16"))
    if binary:
        assert raw[length:] == bytes(to_bytes(array, datatype))
        return
    (told,) = orjson.loads(raw)["outputs"]
    assert told["shape"] == [count, 1] and orjson.loads(raw)["a"] == 1
    assert told["data"] == [
        item.decode() if isinstance(item, bytes) else item for item in array[:, 0].tolist()
    ]


def test_what_json_cannot_carry_is_refused_wherever_in_a_large_answer_it_stands() -> None:
    array = np.ones(5 * STEP_ITEMS, "<f4")
    array[-1] = np.nan
    with pytest.raises(MalformedRequest, match="'y' holds NaN or infinity"):
        protocol.encode(
            {"y": array}, [TensorSpec("y", "FP32", (-1,))], wanted=None, binary=False, envelope={}
        )


def test_large_binary_strings_and_half_floats_are_read_in_steps() -> None:
    texts = np.array([f"text {n}".encode() for n in range(3 * STEP_ITEMS)], dtype=object)
    halves = np.arange(4 * STEP_BYTES, dtype="<f4") % 128
    for datatype, array in (("BYTES", texts), ("BF16", halves)):
        blob = bytes(to_bytes(array, datatype))
        about = {"name": "x", "datatype": datatype, "shape": [len(array)]}
        head = body({**about, "parameters": {"binary_data_size": len(blob)}})
        request, steps = counted(protocol.decode_steps(head + blob, len(head)))
        assert request.inputs["x"].tolist() == array.tolist() and steps >= 3
        asked = message("ModelInferRequest")(model_name="m", raw_input_contents=[blob])
        asked.inputs.add(**about)
        read, steps = counted(grpc_protocol.decode_steps(asked))
        assert read.inputs["x"].tolist() == array.tolist() and steps >= 3


def test_large_typed_contents_go_in_steps_both_ways() -> None:
    count = 4 * STEP_ITEMS
    asked = message("ModelInferRequest")(model_name="m")
    tensor = asked.inputs.add(name="x", datatype="UINT64", shape=[count])
    tensor.contents.uint64_contents.extend(range(2**64 - count, 2**64))
    spec = TensorSpec("x", "UINT64", (-1,))
    read, steps = counted(grpc_protocol.decode_steps(asked, [spec]))
    assert read.inputs["x"].tolist() == list(range(2**64 - count, 2**64)) and steps >= 3
    about: dict[str, Any] = {"model": "m", "variant": "v", "request_id": "", "parameters": {}}
    raw, steps = counted(grpc_protocol.encode_steps(read.inputs, [spec], read, **about))
    told = parse("ModelInferResponse", raw)
    assert list(told.outputs[0].contents.uint64_contents)[-1] == 2**64 - 1 and steps >= 3


def test_a_grpc_shape_that_is_not_the_models_is_refused_before_any_data_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("the data were read")

    monkeypatch.setattr(grpc_protocol, "_input", never)
    asked = message("ModelInferRequest")(model_name="m", raw_input_contents=[bytes(4)])
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 63])
    with pytest.raises(TensorError, match=r"got \[1, 63\]"):
        counted(grpc_protocol.decode_steps(asked, [X]))


@in_virtual_time
async def test_others_have_their_turn_between_two_steps_and_one_large_body_goes_after_the_other() -> None:
    order: list[str] = []

    def steps(name: str) -> Steps[str]:
        for _ in range(3):
            order.append(name)
            yield
        return name

    async def small() -> None:
        for _ in range(3):
            order.append("small")
            await asyncio.sleep(0)

    turns = Turns()
    done = await asyncio.gather(turns.run(steps("a")), turns.run(steps("b")), small())
    assert done[:2] == ["a", "b"]
    assert order == ["a", "b", "small", "a", "small", "a", "small", "b", "b"]
    with pytest.raises(ZeroDivisionError):
        await turns.run(failing())
    assert await turns.run(steps("c")) == "c"


def failing() -> Steps[None]:
    yield
    yield
    raise ZeroDivisionError


@in_virtual_time
async def test_a_small_request_is_answered_while_a_large_one_is_read() -> None:
    ended: list[str] = []
    async with serving(policy=POLICY.replace("64KiB, rows: 16", "64MiB, rows: 1000000")) as served:

        async def send(name: str, request: Awaitable[httpx.Response]) -> None:
            ended.append(f"{name} {(await request).status_code}")

        # Its last element is a letter, which shows when all the others are read.
        large = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[900000,1],"data":[' + b"1.5," * 899_999
        await asyncio.gather(
            send("large", served.client.post("/v2/models/m/infer", content=large + b"x]}]}")),
            *(send("small", served.client.get("/v2/models/m")) for _ in range(3)),
        )
    assert ended == ["small 200", "small 200", "small 200", "large 400"]
