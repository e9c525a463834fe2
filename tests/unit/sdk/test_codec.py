"""What people hand to the SDK, as the server's own codec reads it, and answers as people read them."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from optimizers.tensors import DTYPES, TensorSpec
from router.ingress.codec import protocol
from router.sdk import codec
from router.sdk.codec import ModelInfo
from router.sdk.errors import InvalidRequest, ProtocolError


def model(*specs: tuple[str, str, tuple[int, ...]]) -> ModelInfo:
    return ModelInfo("m", inputs=tuple(TensorSpec(*spec) for spec in specs))


IMAGE = model(("image", "FP32", (-1, 2, 2)))
TEXT = model(("text", "BYTES", (-1, 1)))
PAIR = model(("a", "FP32", (-1, 2)), ("b", "INT64", (-1,)))


def one(inputs: object, info: ModelInfo) -> np.ndarray[Any, Any]:
    (tensor,) = codec.arrange(inputs, info)
    return tensor.array


def read(inputs: object, info: ModelInfo) -> dict[str, np.ndarray[Any, Any]]:
    """What the server's codec makes of the body."""
    body, json_bytes = codec.encode(codec.arrange(inputs, info), None, None)
    return protocol.decode(body, json_bytes).inputs


@pytest.mark.parametrize("datatype", sorted(set(DTYPES) - {"BYTES"}))
def test_every_numeric_datatype_reaches_the_server_as_it_was(datatype: str) -> None:
    info = model(("x", datatype, (-1, 3)))
    sent = np.array([[0, 1, 1], [1, 0, 1]]).astype(DTYPES[datatype])
    got = read(sent, info)["x"]
    assert got.dtype == DTYPES[datatype]
    assert np.array_equal(got, sent)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(16, dtype=np.float32).reshape(4, 2, 2)[::2],
        np.asfortranarray(np.arange(8, dtype=np.float32).reshape(2, 2, 2)),
        np.arange(8, dtype=">f4").reshape(2, 2, 2),
        np.zeros((0, 2, 2), np.float32),
    ],
    ids=["strided", "fortran", "big-endian", "empty"],
)
def test_any_memory_layout_is_sent_row_by_row(array: np.ndarray[Any, Any]) -> None:
    assert np.array_equal(read(array, IMAGE)["image"], array)


@pytest.mark.parametrize("text", ["né", b"a\x00", ["né"], [["né"]], np.array(["né"]), np.array([[b"x"]])])
def test_text_and_bytes_are_taken_with_or_without_axes(text: object) -> None:
    (got,) = read(text, TEXT)["text"].ravel()
    flat = np.array(text, dtype=object).ravel()[0]
    assert got == (flat.encode() if isinstance(flat, str) else flat)


def test_many_texts_are_rows() -> None:
    assert one(["a", "b", "c"], TEXT).shape == (3, 1)
    assert one(["a", "b"], model(("text", "BYTES", (-1,)))).shape == (2,)


def test_list_literals_and_other_widths_become_the_models_dtype() -> None:
    for value in ([[0.1, 0.2], [0.3, 0.4]], [[1, 2], [3, 4]], [[0, 2.5], [3, 4]]):
        got = one(value, IMAGE)
        assert got.dtype == np.float32
        assert np.allclose(got, value)
    assert one([1, 255], model(("x", "UINT8", (-1,)))).dtype == np.uint8
    assert one(np.array([1.5], np.float64), model(("x", "FP16", (-1,)))).dtype == np.float16


def test_not_a_number_and_infinities_pass_a_narrowing() -> None:
    assert np.isinf(one([[np.nan, np.inf], [-np.inf, 0]], IMAGE)).sum() == 2


@pytest.mark.parametrize(
    ("value", "datatype", "message"),
    [
        ([256], "UINT8", "256 cannot be kept in the model's UINT8"),
        ([-1], "UINT32", "-1 cannot be kept"),
        ([2**24 + 1], "FP32", "16777217 cannot be kept"),
        ([1e300], "FP32", r"1e\+300 cannot be kept"),
        ([1e5], "FP16", "cannot be kept"),
        ([1.0], "INT64", "takes INT64, got dtype float64"),
        ([2], "BOOL", "takes BOOL, got dtype int64"),
        (["a"], "FP32", "takes FP32, got 'a'"),
        ([1j], "FP32", "got 1j"),
        ([None], "FP32", "got a missing value; write NaN"),
        ([1], "BYTES", "takes text or bytes, got 1"),
        (np.array([1]), "BYTES", "takes text or bytes, got dtype int64"),
        ([[1, 2], [3]], "FP32", "is not an array"),
    ],
)
def test_a_value_that_would_be_changed_is_refused_by_name(value: Any, datatype: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"input 'x'.*{message}"):
        codec.arrange(value, model(("x", datatype, (-1,))))


def test_one_sample_gets_a_batch_axis() -> None:
    assert one(np.zeros((2, 2)), IMAGE).shape == (1, 2, 2)
    assert one(np.zeros((5, 2, 2)), IMAGE).shape == (5, 2, 2)


@pytest.mark.parametrize("shape", [(4,), (3, 3), (1, 1, 2, 2), (2, 2, 3), ()])
def test_a_wrong_shape_is_told_with_both_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequest, match=r"takes shape \[-1, 2, 2\].*got") as caught:
        codec.arrange(np.zeros(shape), IMAGE)
    assert str(list(shape)) in str(caught.value)


def test_an_item_of_a_map_has_no_batch_axis() -> None:
    (tensor,) = codec.arrange(np.zeros((2, 2)), IMAGE, sample=True)
    assert tensor.array.shape == (1, 2, 2)
    with pytest.raises(InvalidRequest, match=r"each item takes shape \[2, 2\]"):
        codec.arrange(np.zeros((1, 2, 2)), IMAGE, sample=True)
    (text,) = codec.arrange("né", TEXT, sample=True)
    assert text.array.shape == (1, 1)


def test_inputs_go_by_name_where_there_are_several() -> None:
    got = read({"b": [7], "a": [[1, 2]]}, PAIR)
    assert got["a"].tolist() == [[1, 2]]
    assert got["b"].tolist() == [7]
    with pytest.raises(InvalidRequest, match="pass a dict"):
        codec.arrange([1, 2], PAIR)
    with pytest.raises(InvalidRequest, match="input 'b' is missing"):
        codec.arrange({"a": [[1, 2]]}, PAIR)
    with pytest.raises(InvalidRequest, match=r"unknown input 'c'; model 'm' takes 'a' FP32"):
        codec.arrange({"a": [[1, 2]], "b": [1], "c": 1}, PAIR)


class TorchLike:
    """What the SDK uses of a torch tensor."""

    def __init__(self, array: np.ndarray[Any, Any], dtype: str, device: str = "cuda") -> None:
        self.array, self.dtype, self.device = array, dtype, device

    def detach(self) -> TorchLike:
        return self

    def cpu(self) -> TorchLike:
        return TorchLike(self.array, self.dtype, "cpu")

    def float(self) -> TorchLike:
        return TorchLike(self.array.astype(np.float32), "torch.float32", self.device)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        if self.device != "cpu" or self.dtype == "torch.bfloat16":
            raise TypeError(f"numpy cannot hold {self.dtype} on {self.device}")
        return self.array


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_torch_tensors_are_taken_from_any_device(dtype: str) -> None:
    array = np.ones((2, 2), np.float32)
    assert np.array_equal(one(TorchLike(array, dtype), IMAGE)[0], array)


def test_outputs_and_parameters_are_asked_for() -> None:
    body, json_bytes = codec.encode(codec.arrange([[1, 2]], model(("x", "FP32", (-1, 2)))), ["y"], {"k": 1})
    request = protocol.decode(body, json_bytes)
    assert request.parameters == {"k": 1, "binary_data_output": True}
    assert request.outputs == {"y": True}
    with pytest.raises(InvalidRequest, match="must be JSON values"):
        codec.encode([], None, {"k": object()})


def answer(specs: list[TensorSpec], outputs: dict[str, Any], binary: bool) -> tuple[dict[str, str], bytes]:
    body, head = protocol.encode(outputs, specs, wanted=None, binary=binary, envelope={"model_version": "v1"})
    return ({} if head is None else {codec.HEADER_LENGTH: str(head)}), body


@pytest.mark.parametrize("binary", [True, False])
def test_answers_are_read_in_binary_and_in_json(binary: bool) -> None:
    specs = [
        TensorSpec("p", "FP32", (-1, 2)),
        TensorSpec("t", "BYTES", (-1,)),
        TensorSpec("h", "FP16", (-1,)),
    ]
    text = np.array([b"x", "né".encode()], dtype=object)
    outputs = {"p": np.array([[1, 2], [3, 4]], np.float32), "t": text, "h": np.array([0.5, 2], np.float16)}
    result = codec.decode(*answer(specs, outputs, binary), 1.5, "r1")
    for name, array in outputs.items():
        assert result.outputs[name].dtype == array.dtype
        assert np.array_equal(result.outputs[name], array)
    assert result.output is result.outputs["p"]
    assert (result.variant, result.latency_ms, result.id) == ("v1", 1.5, "r1")
    assert result.deadline_met is None


OUTPUT = {"name": "p", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        ({}, b"<html>"),
        ({}, b"[]"),
        ({}, b'{"outputs": []}'),
        ({}, b'{"outputs": 3}'),
        ({}, b'{"outputs": [{"name": "p", "datatype": "FP32", "shape": [2], "data": [1]}]}'),
        ({}, b'{"outputs": [{"name": "p", "datatype": "WHAT", "shape": [1], "data": [1]}]}'),
        ({}, b'{"outputs": [{"name": "p", "datatype": "FP32", "shape": [1]}]}'),
        ({codec.HEADER_LENGTH: "many"}, b"{}"),
        ({codec.HEADER_LENGTH: "9"}, b"{}       1234"),
        ({codec.HEADER_LENGTH: "{n}"}, orjson.dumps({"outputs": [OUTPUT]}) + b"123"),
        ({codec.HEADER_LENGTH: "{n}"}, orjson.dumps({"outputs": [OUTPUT]}) + b"12345"),
        (
            {codec.HEADER_LENGTH: "{n}"},
            orjson.dumps({"outputs": [{**OUTPUT, "parameters": {"binary_data_size": -4}}]}) + b"1234",
        ),
        ({"predicted-ms": "soon"}, b'{"outputs": [{"name":"p","datatype":"FP32","shape":[1],"data":[1]}]}'),
    ],
)
def test_an_answer_that_is_not_in_the_protocol_is_one_clear_error(
    headers: dict[str, str], content: bytes
) -> None:
    length = len(content.rpartition(b"}")[0]) + 1
    filled = {name: value.replace("{n}", str(length)) for name, value in headers.items()}
    with pytest.raises(ProtocolError, match="cannot be read"):
        codec.decode(filled, content, 0.0)


def test_rows_are_handed_out_without_batch_axis() -> None:
    outputs = {"p": np.arange(6.0).reshape(3, 2), "label": np.array([7, 8, 9])}
    rows = codec.split_rows(codec.Result(outputs, route="bulk", id="r1"), 3)
    assert [r.outputs["p"].tolist() for r in rows] == [[0, 1], [2, 3], [4, 5]]
    assert [r.outputs["label"].item() for r in rows] == [7, 8, 9]
    assert {(r.route, r.id) for r in rows} == {("bulk", "r1")}
    with pytest.raises(ProtocolError, match="for 4 rows"):
        codec.split_rows(codec.Result(outputs), 4)


@pytest.mark.parametrize(
    "value", [None, 3, {}, {"name": "m", "inputs": [{"name": "x"}]}, {"name": "m", "inputs": 3}]
)
def test_metadata_that_cannot_be_read_is_a_protocol_error(value: Any) -> None:
    with pytest.raises(ProtocolError, match="description of a model"):
        ModelInfo.from_json(value)
