"""Named tensors, what they must look like, and the one binary codec that carries them.

The layout is the Open Inference Protocol's binary tensor extension: a JSON header that names each
tensor's datatype, shape and size, followed by the raw little-endian bytes in the same order. The
same bytes travel over HTTP, wait in Redis and reach the worker, so nothing is encoded twice and
nothing is ever unpickled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

Array = NDArray[Any]
Tensors = dict[str, Array]
RowShapes = tuple[tuple[str, tuple[int, ...]], ...]
Buffer = bytes | bytearray | memoryview

#: Protocol datatype -> numpy dtype in memory. BF16 has no numpy type: it is widened to float32,
#: which is exact, and rounded to nearest even on the way out. BYTES are arrays of ``bytes``.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<f4"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
_BY_DTYPE = {dtype: name for name, dtype in DTYPES.items() if name != "BF16"}

MAX_RANK = 16
#: Of one axis, also where another of size 0 leaves nothing to hold.
MAX_DIMENSION = (1 << 31) - 1
MAX_HEADER_BYTES = 1 << 20
_MAX_ELEMENTS = 1 << 56


class TensorError(ValueError):
    """A tensor that cannot be read, or is not what the model takes. The message says which and why."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What one input or output must look like.

    ``shape`` counts the batch axis first; -1 stands for any size, and a batch axis is always -1.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.datatype not in DTYPES:
            raise TensorError(
                f"tensor {self.name!r}: unknown datatype {self.datatype!r}; known: {', '.join(DTYPES)}"
            )

    @property
    def dtype(self) -> np.dtype[Any]:
        return DTYPES[self.datatype]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TensorSpec:
        try:
            return cls(str(value["name"]), str(value["datatype"]), tuple(int(d) for d in value["shape"]))
        except (KeyError, TypeError, ValueError) as error:
            raise TensorError(f"not a tensor specification: {value!r} ({error})") from None


def datatype_of(array: Array) -> str:
    """The protocol's name for a numpy array's dtype; text and object arrays are BYTES."""
    if array.dtype.kind in "OSU":
        return "BYTES"
    try:
        return _BY_DTYPE[array.dtype.newbyteorder("<")]
    except KeyError:
        raise TensorError(f"numpy dtype {array.dtype} has no datatype in the protocol") from None


def to_bytes(array: Array, datatype: str) -> Buffer:
    """The raw bytes of one tensor, row-major and little-endian (BYTES: 4-byte length before each)."""
    if datatype == "BYTES":
        parts = bytearray()
        for item in array.ravel():
            raw = item.encode() if isinstance(item, str) else bytes(item)
            parts += len(raw).to_bytes(4, "little")
            parts += raw
        return parts
    if datatype == "BF16":
        bits = np.ascontiguousarray(array, dtype="<f4").view("<u4")
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
        # Rounding would carry the all-ones mantissa of a NaN into the sign: keep it a quiet NaN.
        return np.where(np.isnan(array), np.uint16(0x7FC0), rounded).astype("<u2").tobytes()
    return np.asarray(array, dtype=DTYPES[datatype]).tobytes()


def from_bytes(buffer: Buffer, datatype: str, shape: Sequence[int], name: str = "tensor") -> Array:
    """One tensor from its raw bytes. A numeric result is a read-only view of ``buffer``."""
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise TensorError(f"{name!r}: unknown datatype {datatype!r}; known: {', '.join(DTYPES)}")
    count = element_count(shape, name)
    if datatype == "BYTES":
        return _split_bytes(buffer, count, name).reshape(tuple(shape))
    width = 2 if datatype == "BF16" else dtype.itemsize
    if len(buffer) != count * width:
        raise TensorError(
            f"{name!r}: {datatype} of shape {list(shape)} takes {count * width} bytes, got {len(buffer)}"
        )
    if datatype == "BF16":
        wide = np.frombuffer(buffer, dtype="<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(tuple(shape))
    return np.frombuffer(buffer, dtype=dtype).reshape(tuple(shape))


def element_count(shape: Sequence[int], name: str = "tensor") -> int:
    """How many elements a shape holds. Raises :class:`TensorError` for what no array can have."""
    if len(shape) > MAX_RANK:
        raise TensorError(f"{name!r}: rank {len(shape)} is over the limit of {MAX_RANK}")
    for size in shape:
        if type(size) is not int or not 0 <= size <= MAX_DIMENSION:
            axis = next(n for n, each in enumerate(shape) if each is size)
            if type(size) is int and size > 0:
                raise TensorError(f"{name!r}: axis {axis} of the shape is over the limit of {MAX_DIMENSION}")
            raise TensorError(f"{name!r}: axis {axis} of the shape must be a whole number of 0 or more")
    count = math.prod(shape)
    # numpy bounds the product also where a size of 0 leaves nothing to hold.
    if (count or math.prod(size for size in shape if size)) > _MAX_ELEMENTS:
        raise TensorError(f"{name!r}: shape {list(shape)} is larger than any array can be")
    return count


def _split_bytes(buffer: Buffer, count: int, name: str) -> Array:
    view, at = memoryview(buffer), 0
    if count * 4 > len(view):
        raise TensorError(
            f"{name!r}: {count} BYTES elements take at least {count * 4} bytes, got {len(view)}"
        )
    items = np.empty(count, dtype=object)
    at = fill_bytes(items, 0, count, view, at, name)
    if at != len(view):
        raise TensorError(f"{name!r}: {len(view) - at} bytes follow the last of {count} BYTES elements")
    return items


def fill_bytes(items: Array, start: int, stop: int, view: memoryview, at: int, name: str) -> int:
    """Read the elements ``start`` to ``stop`` of a flat BYTES tensor from ``at`` on; gives where they end."""
    count = len(items)
    for i in range(start, stop):
        if at + 4 > len(view):
            raise TensorError(f"{name!r}: BYTES element {i} of {count} is cut off")
        size = int.from_bytes(view[at : at + 4], "little")
        at += 4
        if at + size > len(view):
            raise TensorError(f"{name!r}: BYTES element {i} claims {size} bytes, {len(view) - at} are left")
        items[i] = bytes(view[at : at + size])
        at += size
    return at


def pack(tensors: Mapping[str, Array], parameters: Mapping[str, Any] | None = None) -> bytes:
    """Tensors as one self-contained message: 4-byte header length, JSON header, raw data."""
    entries, blobs = [], []
    for name, array in tensors.items():
        datatype = datatype_of(array)
        blob = to_bytes(array, datatype)
        blobs.append(blob)
        entries.append({"name": name, "datatype": datatype, "shape": array.shape, "size": len(blob)})
    header: dict[str, Any] = {"tensors": entries}
    if parameters:
        header["parameters"] = parameters
    head = orjson.dumps(header)
    return b"".join((len(head).to_bytes(4, "little"), head, *blobs))


def unpack(message: Buffer) -> tuple[Tensors, dict[str, Any]]:
    """The tensors and parameters of :func:`pack`; numeric arrays are read-only views of ``message``."""
    view = memoryview(message)
    size = int.from_bytes(view[:4], "little")
    if len(view) < 4 or size > MAX_HEADER_BYTES or 4 + size > len(view):
        raise TensorError("not a tensor message: it is cut off before the end of its header")
    try:
        header = orjson.loads(view[4 : 4 + size])
        entries = [(e["name"], e["datatype"], e["shape"], int(e["size"])) for e in header["tensors"]]
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise TensorError(f"not a tensor message: its header cannot be read ({error})") from None
    tensors: Tensors = {}
    at = 4 + size
    for name, datatype, shape, length in entries:
        if length < 0 or at + length > len(view):
            raise TensorError(f"{name!r}: {length} bytes announced, {len(view) - at} are left")
        tensors[name] = from_bytes(view[at : at + length], datatype, shape, name)
        at += length
    if at != len(view):
        raise TensorError(f"{len(view) - at} bytes follow the last tensor")
    return tensors, header.get("parameters") or {}


def row_shapes(message: Buffer) -> RowShapes:
    """The name and the row's shape of each tensor in a :func:`pack` message, without reading the tensors.

    What is in messages of equal row shapes can be joined. Empty where the header cannot be read.
    """
    size = int.from_bytes(message[:4], "little")
    return _row_shapes(bytes(message[4 : 4 + size])) if size <= MAX_HEADER_BYTES else ()


@lru_cache(maxsize=1024)
def _row_shapes(head: bytes) -> RowShapes:
    try:
        return tuple((str(e["name"]), tuple(map(int, e["shape"][1:]))) for e in orjson.loads(head)["tensors"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return ()


def rows_of(tensors: Mapping[str, Array]) -> int:
    """How many rows a batch holds: the first axis, on which all tensors must agree."""
    rows = -1
    for name, array in tensors.items():
        if array.ndim == 0:
            raise TensorError(f"{name!r}: a scalar has no batch axis; send shape [rows, ...]")
        if rows not in (-1, array.shape[0]):
            raise TensorError(f"{name!r}: {array.shape[0]} rows where the other tensors have {rows}")
        rows = array.shape[0]
    if rows < 1:
        raise TensorError("a request needs at least one tensor of at least one row")
    return rows


def concat(batches: Sequence[Mapping[str, Array]]) -> Tensors:
    """Batches of the same names joined along the row axis, in order.

    Raises :class:`TensorError` where their rows differ in shape.
    """
    if len(batches) == 1:
        return dict(batches[0])
    joined: Tensors = {}
    for name in batches[0]:
        parts = [batch[name] for batch in batches]
        try:
            joined[name] = np.concatenate(parts)
        except ValueError:
            shapes = " and ".join(sorted({str(list(part.shape[1:])) for part in parts}))
            raise TensorError(f"{name!r}: rows of the shapes {shapes} cannot be joined") from None
    return joined


def split(tensors: Mapping[str, Array], rows: Iterable[int]) -> list[Tensors]:
    """The inverse of :func:`concat`: consecutive slices (views) of the given row counts."""
    parts, at = [], 0
    for count in rows:
        parts.append({name: array[at : at + count] for name, array in tensors.items()})
        at += count
    for name, array in tensors.items():
        if array.shape[0] != at:
            raise TensorError(f"{name!r}: {array.shape[0]} rows cannot be split into {at}")
    return parts


def check(tensors: Mapping[str, Array], specs: Sequence[TensorSpec], what: str = "input") -> int:
    """Raise :class:`TensorError` unless ``tensors`` are exactly what ``specs`` ask for; give the rows.

    The message names the tensor, what was expected and what came.
    """
    for spec in specs:
        array = tensors.get(spec.name)
        if array is None:
            raise _missing(spec, specs, what)
        if array.dtype != spec.dtype:
            raise TensorError(
                f"{what} {spec.name!r}: the model takes {spec.datatype}, got {datatype_of(array)}"
            )
        _check_shape(array.shape, spec, what)
    if len(tensors) != len(specs):
        raise _unknown(tensors, specs, what)
    return rows_of(tensors)


def check_declared(
    declared: Mapping[str, tuple[str, Sequence[int]]], specs: Sequence[TensorSpec], what: str = "input"
) -> None:
    """The same for datatypes and shapes by name, before there are any data. BF16 is FP32 once it is read."""
    for spec in specs:
        if spec.name not in declared:
            raise _missing(spec, specs, what)
        datatype, shape = declared[spec.name]
        if DTYPES[datatype] != spec.dtype:
            raise TensorError(f"{what} {spec.name!r}: the model takes {spec.datatype}, got {datatype}")
        _check_shape(tuple(shape), spec, what)
    if len(declared) != len(specs):
        raise _unknown(declared, specs, what)


def _check_shape(shape: tuple[int, ...], spec: TensorSpec, what: str) -> None:
    wanted = spec.shape
    if len(shape) != len(wanted) or (
        shape[1:] != wanted[1:]  # nearly always equal, and then told at once
        and any(want not in (-1, got) for want, got in zip(wanted, shape, strict=True))
    ):
        raise TensorError(
            f"{what} {spec.name!r}: the model takes shape {list(spec.shape)} "
            f"(-1 is any size), got {list(shape)}"
        )


def _missing(spec: TensorSpec, specs: Sequence[TensorSpec], what: str) -> TensorError:
    return TensorError(f"{what} {spec.name!r} is missing; the model takes {_describe(specs)}")


def _unknown(names: Iterable[str], specs: Sequence[TensorSpec], what: str) -> TensorError:
    extra = ", ".join(sorted(set(names) - {s.name for s in specs}))
    return TensorError(f"unknown {what} {extra!r}; the model takes {_describe(specs)}")


def _describe(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{s.name!r} {s.datatype} {list(s.shape)}" for s in specs)
