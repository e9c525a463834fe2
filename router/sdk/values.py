"""Values as people hand them in, as arrays of a model's datatypes: exactly, or refused with the value.

The one way for all of them: Python's numbers and lists, numpy and torch, JSON, the cells of a CSV file, the
columns of a Parquet file. A whole number is kept exactly, in a float too; other numbers are rounded to
what the float holds; nothing wraps or overflows, and true and false are no numbers. No I/O.

This is stricter than the server, which rounds a JSON body's ``16777217`` for an FP32 input to ``16777216.0``.
The client knows an integer from a float, and an integer that a float cannot hold is nearly always an id or a
code in the wrong column. JSON has one kind of number: a JavaScript client writes the float 16777217.0 in the
same way, so the server cannot tell the two apart. To have the client round as well, pass floats.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import orjson

from optimizers.tensors import Array, TensorSpec, from_bytes, to_bytes
from router.sdk.errors import InvalidRequest

#: Whole numbers up to two to this power are exact in each float.
_EXACT_BITS = {"FP16": 11, "BF16": 8, "FP32": 24, "FP64": 53}
#: Kinds of numpy dtypes that an input of each kind takes.
_TAKES = {"b": "b", "u": "ui", "i": "ui", "f": "uif"}
#: orjson makes a float of a whole number beyond 64 bits.
_LONG_NUMBER = re.compile(rb"[0-9]{19}")
_WHOLE = re.compile(r"[+-]?[0-9]{1,400}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NO_NUMBER = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_TRUE, _FALSE = ("true", "1"), ("false", "0")


def read_json(data: bytes | str) -> object:
    """JSON with every whole number exact, and NaN and Infinity as Python and most clients write them.

    Raises ValueError for anything else.
    """
    raw = data.encode() if isinstance(data, str) else data
    refused = "a number in it has too many digits"
    if not _LONG_NUMBER.search(raw):
        try:
            value: object = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            refused = str(error)
        else:
            return value
    try:
        return json.loads(raw.decode(), parse_float=_finite)
    except (ValueError, RecursionError):
        raise ValueError(refused) from None


def _finite(text: str) -> float:
    if np.isinf(value := float(text)):
        raise ValueError(text)
    return value


def array_of(value: object, spec: TensorSpec) -> Array:
    """``value`` as an array of the dtype of ``spec``, in its own shape. Raises InvalidRequest."""
    try:
        return _cast(_as_array(value, spec), spec)
    except InvalidRequest:
        raise
    except Exception as error:  # an object of somebody else's may raise anything
        raise InvalidRequest(f"input {spec.name!r} is not an array: {error}") from None


def array_of_cells(cells: Sequence[str], spec: TensorSpec) -> Array:
    """One element from each text. Raises InvalidRequest, naming a text that is none."""
    kind = spec.dtype.kind
    if kind == "O":
        return _cast(objects(cells), spec)
    if kind == "b":
        return np.array([_truth(cell, spec) for cell in cells], bool)
    if kind == "f" and (quick := _small_numbers(cells, spec)) is not None:
        return quick
    return _cast(objects([_number(cell, spec) for cell in cells]), spec)


def objects(values: Sequence[object]) -> Array:
    """Values of any kind and length as an object array; numpy's own strings would drop trailing NULs."""
    column = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        column[index] = value
    return column


def _as_array(value: object, spec: TensorSpec) -> Array:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview):
        nested, leaves = _leaves(value)
        if spec.datatype == "BYTES":
            return np.array(nested, dtype=object)
        if leaves <= {int, float} or leaves in ({bool}, {np.ndarray}):
            array = np.array(nested)
            # numpy makes floats of whole numbers on both sides of 2**63, and of those beside a float.
            if not (array.dtype.kind in "fO" and int in leaves and _largest(array) >= _exact_to(spec)):
                return array
        return np.array(nested, dtype=object)
    native = _native(value)
    return np.array(value, dtype=object) if native is None else native


def _leaves(value: Sequence[Any]) -> tuple[list[Any], set[type]]:
    """Nested lists, and the types of what they hold: numpy's arrays where all are arrays of one dtype.

    Arrays of several dtypes become lists, as numpy would make floats of signed and unsigned ones.
    """
    if value and isinstance(value[0], list | tuple):
        parts = [_leaves(v) if isinstance(v, list | tuple) else (v, {type(v)}) for v in value]
        return [part for part, _ in parts], set().union(*(leaves for _, leaves in parts))
    leaves = set(map(type, value))
    if leaves <= {int, float, bool, str, bytes}:
        return list(value), leaves
    arrays = [item if (native := _native(item)) is None else native for item in value]
    dtypes = {item.dtype if isinstance(item, np.ndarray) else None for item in arrays}
    if len(dtypes) == 1 and None not in dtypes:
        return arrays, {np.ndarray}
    return [item.tolist() if isinstance(item, np.ndarray) else item for item in arrays], {object}


def _native(value: Any) -> Array | None:
    """A numpy array as it is, another library's (torch's, known without importing it) as one; else None."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        tensor: Any = value.detach().cpu()
        # numpy has no bfloat16: float32 holds each of its values exactly.
        return np.asarray(tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor)
    return np.asarray(value) if hasattr(value, "__array__") else None


def _cast(array: Array, spec: TensorSpec) -> Array:
    want = spec.dtype
    if not array.size:
        return array.astype(want)
    if spec.datatype == "BYTES":
        return _texts(array, spec)
    if array.dtype.kind == "O":
        return _from_objects(array, spec)
    if array.dtype.kind not in _TAKES[want.kind]:
        _refuse_kind(array, spec)
    if array.dtype == want and spec.datatype != "BF16":
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(want)
        held = from_bytes(to_bytes(cast, "BF16"), "BF16", cast.shape) if spec.datatype == "BF16" else cast
    _check_kept(array, held, spec)
    return cast


def _check_kept(array: Array, held: Array, spec: TensorSpec) -> None:
    """Raises InvalidRequest for the first number of ``array`` that is another in ``held``."""
    if spec.dtype.kind in "iu":
        limits = np.iinfo(spec.dtype)
        low, high = int(array.min()) < limits.min, int(array.max()) > limits.max
        if low or high:
            wrong = (array < limits.min) if low else (array > limits.max)
            _refuse(array, int(np.argmax(wrong)), spec)
    elif array.dtype.kind == "f":
        lost = np.isfinite(array) & ~np.isfinite(held)
        if lost.any():
            _refuse(array, int(np.argmax(lost)), spec)
    else:
        limit = _exact_to(spec)
        if int(array.max()) > limit or int(array.min()) < -limit:
            for index, (given, kept) in enumerate(zip(array.flat, held.flat, strict=True)):
                if not np.isfinite(kept) or int(given) != int(kept):
                    _refuse(array, index, spec)


def _from_objects(array: Array, spec: TensorSpec) -> Array:
    """Numbers of Python's, each by itself."""
    kind = spec.dtype.kind
    if not all(_fits(value, spec) for value in array.flat):
        _refuse_kind(array, spec)
    if kind == "b":
        return array.astype(bool)
    if kind in "iu":
        limits = np.iinfo(spec.dtype)
        for index, value in enumerate(array.flat):
            if not limits.min <= value <= limits.max:
                _refuse(array, index, spec)
        return array.astype(spec.dtype)
    whole = [isinstance(value, int | np.integer) for value in array.flat]
    try:
        wide = array.astype(np.float64)
    except OverflowError:
        _refuse(array, next(i for i, v in enumerate(array.flat) if abs(v) >= 2**1023), spec)
    cast = _cast(wide, spec)
    held = from_bytes(to_bytes(cast, "BF16"), "BF16", cast.shape) if spec.datatype == "BF16" else cast
    for index, is_whole in enumerate(whole):
        if is_whole and int(held.flat[index]) != int(array.flat[index]):
            _refuse(array, index, spec)
    return cast


def _texts(array: Array, spec: TensorSpec) -> Array:
    kind = array.dtype.kind
    if kind not in "SUO" or (kind == "O" and not all(_fits(item, spec) for item in array.flat)):
        _refuse_kind(array, spec)
    for index, item in enumerate(array.flat):
        if isinstance(item, str) and not item.isascii():
            try:
                item.encode()
            except UnicodeEncodeError:
                _refuse(array, index, spec)
    return array


def _refuse_kind(array: Array, spec: TensorSpec) -> NoReturn:
    """For values of a kind that the input does not take; the first of them is named."""
    what = "text or bytes" if spec.datatype == "BYTES" else spec.datatype
    start = f"input {spec.name!r}: the model takes {what}, got"
    if array.dtype.kind != "O":
        raise InvalidRequest(f"{start} dtype {array.dtype}: {_repr(array.flat[0])}{_where(array, 0)}")
    index, value = next((i, v) for i, v in enumerate(array.flat) if not _fits(v, spec))
    hint = "; write NaN for what is not a number" if value is None and spec.dtype.kind == "f" else ""
    got = "a missing value" if value is None else _repr(value)
    raise InvalidRequest(f"{start} {got}{_where(array, index)}{hint}")


def _fits(value: object, spec: TensorSpec) -> bool:
    """Whether a value of Python's is of a kind that the input takes."""
    if spec.datatype == "BYTES":
        return isinstance(value, str | bytes)
    if spec.dtype.kind == "b":
        return isinstance(value, bool | np.bool_)
    if isinstance(value, bool):
        return False
    return isinstance(value, int | np.integer) or (
        spec.dtype.kind == "f" and isinstance(value, float | np.floating)
    )


def _refuse(array: Array, index: int, spec: TensorSpec) -> NoReturn:
    """For a value that the input's datatype does not hold."""
    room = ""
    if spec.dtype.kind in "iu":
        limits = np.iinfo(spec.dtype)
        room = f" ({limits.min} to {limits.max})"
    kept = f"cannot be kept in the model's {spec.datatype}{room}{_where(array, index)}"
    raise InvalidRequest(f"input {spec.name!r}: {_repr(array.flat[index])} {kept}")


def _where(array: Array, index: int) -> str:
    if array.size == 1:
        return ""
    return f", at {[int(i) for i in np.unravel_index(index, array.shape)]}"


def _repr(value: object) -> str:
    """A value in an error: as Python writes it, and short."""
    item = value.item() if isinstance(value, np.generic) else value
    return reprlib.repr(item)


def _exact_to(spec: TensorSpec) -> int:
    """Up to where the input's floats, or those on the way to its integers, hold every whole number."""
    return 1 << _EXACT_BITS.get(spec.datatype, 53)


def _largest(array: Array) -> Any:
    """The largest size of a number in it; of one that is no float's or integer's, without an end."""
    if array.dtype.kind == "O":
        return np.inf
    finite = np.abs(array[np.isfinite(array)])
    return finite.max() if finite.size else 0.0


def _small_numbers(cells: Sequence[str], spec: TensorSpec) -> Array | None:
    """All cells at once, where each number is one that a float of the input's surely keeps; else None."""
    joined = "".join(cells)
    if "_" in joined or not joined.isascii():  # Python's numbers may have both, a file's do not
        return None
    try:
        wide = np.array(cells, dtype=np.float64)
    except ValueError:
        return None
    # What is not a number compares as false, what is infinite may have been a large number.
    small = not (np.abs(wide) >= _exact_to(spec)).any()
    return wide.astype(spec.dtype) if small else None


def _number(cell: str, spec: TensorSpec) -> int | float:
    text = cell.strip()
    if _WHOLE.fullmatch(text):
        return int(text)
    if spec.dtype.kind == "f":
        if _NO_NUMBER.fullmatch(text):
            return float(text)
        if _NUMBER.fullmatch(text):
            value = float(text)
            if np.isfinite(value):
                return value
    what = "a whole number" if spec.dtype.kind in "iu" else f"a number that {spec.datatype} holds"
    got = f"{reprlib.repr(cell)} is not {what}" if text else f"a cell is empty where {what} is expected"
    raise InvalidRequest(f"input {spec.name!r}: {got}")


def _truth(cell: str, spec: TensorSpec) -> bool:
    word = cell.strip().lower()
    if word not in _TRUE + _FALSE:
        raise InvalidRequest(f"input {spec.name!r}: {reprlib.repr(cell)} is neither true nor false")
    return word in _TRUE
