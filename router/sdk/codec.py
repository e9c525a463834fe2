"""What people hand in and get back, to and from the bytes of the Open Inference Protocol.

No I/O. Inputs become named arrays of the model's own dtypes, then one body in the binary tensor
extension; answers, binary or JSON, become a :class:`Result`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson

from optimizers.tensors import DTYPES, Array, Buffer, TensorError, TensorSpec, from_bytes, to_bytes
from router.sdk.errors import InvalidRequest, ProtocolError
from router.sdk.values import array_of

HEADER_LENGTH = "inference-header-content-length"


@dataclass(frozen=True, slots=True)
class Result:
    """One answer.

    ``outputs`` holds numpy arrays by name, rows first, read-only where they came as binary data;
    BYTES are arrays of ``bytes``. ``latency_ms`` is what this caller waited, by its own clock;
    ``predicted_ms`` and ``queued_ms`` are the server's. ``deadline_met`` is the server's word too, None
    where it gave none.

    >>> result = client.infer("digits", image, budget="1s")
    >>> result.outputs["scores"].shape, result.outputs["scores"].dtype
    ((1, 10), dtype('float32'))
    >>> result.route, result.path, result.variant in ("float32", "int8")
    ('interactive', 'online', True)
    >>> result.latency_ms > 0
    True
    """

    outputs: dict[str, Array]
    route: str | None = None
    path: str | None = None
    variant: str | None = None
    latency_ms: float = 0.0
    predicted_ms: float | None = None
    queued_ms: float | None = None
    deadline_met: bool | None = None
    id: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> Array:
        """The only output, or the first of several.

        >>> client.infer("digits", image, budget="1s").output
        array([3])
        """
        return next(iter(self.outputs.values()))


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the server says of a model: its variants (the protocol's versions), inputs and outputs.

    A shape counts rows first; -1 is any size.

    >>> model = client.model("digits")
    >>> model.name, model.versions
    ('digits', ('float32', 'int8', 'tree'))
    >>> model.inputs
    (TensorSpec(name='image', datatype='FP32', shape=(-1, 1, 8, 8)),)
    """

    name: str
    versions: tuple[str, ...] = ()
    platform: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    @classmethod
    def from_json(cls, value: Any) -> ModelInfo:
        """Raises ProtocolError for anything but a model's metadata, or its bare name."""
        if isinstance(value, str):
            return cls(value)
        try:
            return cls(
                str(value["name"]),
                tuple(str(v) for v in value.get("versions") or ()),
                str(value.get("platform") or ""),
                tuple(TensorSpec.from_json(v) for v in value.get("inputs") or ()),
                tuple(TensorSpec.from_json(v) for v in value.get("outputs") or ()),
            )
        except (KeyError, TypeError, AttributeError, TensorError) as error:
            raise ProtocolError(f"the server's description of a model cannot be read: {error}") from None


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input, ready for the wire: ``array`` has the dtype of ``datatype`` and its batch axis."""

    name: str
    datatype: str
    array: Array


def arrange(inputs: object, model: ModelInfo, *, sample: bool = False) -> list[Tensor]:
    """``inputs`` as the tensors that ``model`` takes.

    A mapping gives each input by name; anything else is the only input of a model with one. Arrays,
    nested lists, torch tensors, strings and numbers are taken, in the model's dtype where that keeps them
    (:mod:`router.sdk.values`). Without a batch axis they get one.
    ``sample`` says that they have none. Raises InvalidRequest, naming input, expected and got.
    """
    specs = model.inputs
    if not isinstance(inputs, Mapping):
        if len(specs) != 1:
            raise InvalidRequest(
                f"model {model.name!r} takes {_describe(specs) or 'no inputs'}: pass a dict of them by name"
            )
        return [_tensor(inputs, specs[0], sample)]
    tensors = []
    for spec in specs:
        if spec.name not in inputs:
            raise InvalidRequest(
                f"input {spec.name!r} is missing; model {model.name!r} takes {_describe(specs)}"
            )
        tensors.append(_tensor(inputs[spec.name], spec, sample))
    if len(tensors) != len(inputs):
        extra = ", ".join(sorted(repr(n) for n in set(inputs) - {s.name for s in specs}))
        raise InvalidRequest(f"unknown input {extra}; model {model.name!r} takes {_describe(specs)}")
    return tensors


def _describe(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{s.name!r} {s.datatype} {list(s.shape)}" for s in specs)


def _tensor(value: object, spec: TensorSpec, sample: bool) -> Tensor:
    return Tensor(spec.name, spec.datatype, _with_rows(array_of(value, spec), spec, sample))


def _with_rows(array: Array, spec: TensorSpec, sample: bool) -> Array:
    """``array`` with the model's rank: a sample gets its batch axis, a column of rows its last axes of 1."""
    if not sample and _fits(array.shape, spec.shape):
        return array
    if _fits(array.shape, spec.shape[1:]):
        return array[None]
    wide = array.shape + (1,) * (len(spec.shape) - array.ndim - sample)
    if _fits(wide, spec.shape[1:] if sample else spec.shape):
        return array.reshape((1, *wide) if sample else wide)
    want = list(spec.shape[1:] if sample else spec.shape)
    what = "each item takes shape" if sample else "the model takes shape"
    raise InvalidRequest(f"input {spec.name!r}: {what} {want} (-1 is any size), got {list(array.shape)}")


def _fits(shape: Sequence[int], spec: Sequence[int]) -> bool:
    return len(shape) == len(spec) and all(w in (-1, g) for g, w in zip(shape, spec, strict=True))


def stack(rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Samples of equal shapes, each with a batch axis of 1, as one batch."""
    return [
        Tensor(column[0].name, column[0].datatype, np.concatenate([t.array for t in column]))
        for column in zip(*rows, strict=True)
    ]


def encode(
    tensors: Sequence[Tensor], outputs: Sequence[str] | None, parameters: Mapping[str, Any] | None
) -> tuple[bytes, int]:
    """A request body with every tensor as binary data, and the length of its JSON part."""
    entries, blobs = [], []
    for tensor in tensors:
        blob, size = _blob(tensor)
        blobs.append(blob)
        entries.append(
            {
                "name": tensor.name,
                "shape": tensor.array.shape,
                "datatype": tensor.datatype,
                "parameters": {"binary_data_size": size},
            }
        )
    message: dict[str, Any] = {
        "inputs": entries,
        "parameters": {**(parameters or {}), "binary_data_output": True},
    }
    if outputs:
        message["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    try:
        head = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise InvalidRequest(f"parameters and output names must be JSON values: {error}") from None
    return b"".join((head, *blobs)), len(head)


def _blob(tensor: Tensor) -> tuple[Buffer, int]:
    """The raw bytes and their count, without a copy where memory already is as the wire wants it."""
    array = tensor.array
    if tensor.datatype not in ("BF16", "BYTES") and array.flags.c_contiguous:
        return array.data, array.nbytes
    blob = to_bytes(array, tensor.datatype)
    return blob, len(blob)


def decode(headers: Mapping[str, str], content: bytes, latency_ms: float, id: str | None = None) -> Result:
    """An answer with a result in it. Raises ProtocolError for anything else.

    ``headers`` has lower-case names; ``id`` is the request's, where the answer does not repeat it.
    """
    try:
        length = headers.get(HEADER_LENGTH)
        split = len(content) if length is None else int(length)
        message = orjson.loads(memoryview(content)[:split])
        outputs = _outputs(message["outputs"], memoryview(content)[split:])
        return Result(
            outputs,
            headers.get("route"),
            headers.get("path"),
            headers.get("variant") or message.get("model_version"),
            latency_ms,
            _number(headers.get("predicted-ms")),
            _number(headers.get("queued-ms")),
            _flag(headers.get("deadline-met")),
            message.get("id") or id,
            message.get("parameters") or {},
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        kind = headers.get("content-type", "no content type")
        raise ProtocolError(f"the answer ({kind}, {len(content)} bytes) cannot be read: {error!r}") from None


def pick(result: Result, names: Sequence[str]) -> Result:
    """The result with these outputs alone, in this order. Raises ProtocolError where one is missing."""
    missing = [name for name in names if name not in result.outputs]
    if missing:
        raise ProtocolError(f"the answer has no output {missing[0]!r}", id=result.id)
    return replace(result, outputs={name: result.outputs[name] for name in names})


def _outputs(entries: Any, raw: memoryview) -> dict[str, Array]:
    outputs: dict[str, Array] = {}
    at = 0
    for entry in entries:
        name, datatype, shape = entry["name"], entry["datatype"], entry["shape"]
        if "data" in entry:
            outputs[name] = _from_json(entry["data"], datatype, shape)
            continue
        size = entry["parameters"]["binary_data_size"]
        if not 0 <= size <= len(raw) - at:
            raise ValueError(f"output {name!r} announces {size} bytes, {len(raw) - at} are left")
        outputs[name] = from_bytes(raw[at : at + size], datatype, shape, name)
        at += size
    if at != len(raw):
        raise ValueError(f"{len(raw) - at} bytes follow the last output")
    if not outputs:
        raise ValueError("it has no outputs")
    return outputs


def _from_json(data: Any, datatype: str, shape: Sequence[int]) -> Array:
    array: Array = np.array(data, dtype=DTYPES[datatype])
    if datatype == "BYTES":
        flat = np.empty(array.size, dtype=object)
        flat[:] = [item.encode() if isinstance(item, str) else item for item in array.flat]
        array = flat
    return array.reshape(tuple(shape))


def _number(value: str | None) -> float | None:
    return None if value is None else float(value)


def _flag(value: str | None) -> bool | None:
    return None if value is None else value.lower() in ("true", "1", "?1")


def same_shapes(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether two rows can be in one batch."""
    return all(x.array.shape == y.array.shape for x, y in zip(a, b, strict=True))


def split_rows(result: Result, rows: int) -> list[Result]:
    """One result for each of the ``rows`` of a batch; its outputs have no batch axis (views, no copies)."""
    for name, array in result.outputs.items():
        if array.ndim == 0 or array.shape[0] != rows:
            raise ProtocolError(
                f"output {name!r} has shape {list(array.shape)} for {rows} rows", id=result.id
            )
    return [
        Result(
            {name: array[row, ...] for name, array in result.outputs.items()},
            result.route,
            result.path,
            result.variant,
            result.latency_ms,
            result.predicted_ms,
            result.queued_ms,
            result.deadline_met,
            result.id,
            result.parameters,
        )
        for row in range(rows)
    ]
