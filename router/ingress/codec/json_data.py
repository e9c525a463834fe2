"""The numbers, truths and texts of a JSON list as an array of a protocol's datatype, without a silent cast.

Pure. A truth is no number and a number no truth; whole numbers fit their integer datatype, exactly, and the
first that does not is named. For a float datatype every number is rounded to the nearest that it holds,
also ``16777217`` for FP32: JSON has one kind of number, and a JavaScript client writes 16777217.0 the same
way. The SDK knows an integer from a float, and refuses one that would be rounded (`router.sdk.values`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

from optimizers.tensors import DTYPES, Array, from_bytes, to_bytes

_SHOWN_CHARS = 40
_KINDS = {"BOOL": "b", "FP16": "fiu", "BF16": "fiu", "FP32": "fiu", "FP64": "fiu", "BYTES": "OU"}


class MalformedRequest(ValueError):
    """A body that is not what the protocol says; the message names the member at fault."""


def excerpt(value: Any) -> str:
    """A value from JSON in a sentence: as JSON has it, and short."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, float) and not np.isfinite(value):
        return "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    text: str = orjson.dumps(value[:_SHOWN_CHARS] if isinstance(value, str) else value).decode()
    cut = isinstance(value, str) and len(value) > _SHOWN_CHARS
    return text[:-1] + '..."' if cut else text


def array_of(data: list[Any], datatype: str, name: str, *, truths: bool = True) -> Array:
    """An array of ``datatype`` from evenly nested lists, in their shape.

    ``truths`` says whether there may be a true or false among numbers, which costs a look. Raises
    `MalformedRequest` for what ``datatype`` does not hold.
    """
    try:
        array = np.array(data, dtype=object) if datatype == "BYTES" else np.array(data)
    except (ValueError, OverflowError):
        raise MalformedRequest(f"input {name!r}: 'data' is ragged or not of one kind") from None
    if datatype == "BYTES":
        return _texts(array, name)
    kind = array.dtype.kind
    if kind in "fO" and DTYPES[datatype].kind in "iu" and kinds(data) == {int}:
        array = _whole(data, datatype, name)  # numpy takes whole numbers on both sides of 2**63 for floats
        kind = array.dtype.kind
    if array.size and kind not in _KINDS.get(datatype, "iu"):
        raise _misfit(data, datatype, name)
    # numpy takes a true among numbers for a 1.
    if kind != "b" and truths and bool in kinds(data):
        raise MalformedRequest(f"input {name!r}: 'data' holds true or false among the numbers of {datatype}")
    return _cast(array, datatype, name)


def kinds(data: list[Any]) -> set[type]:
    """What evenly nested lists hold: int, float, bool."""
    if data and isinstance(data[0], list):
        return set().union(*map(kinds, data))
    return set(map(type, data))


def _misfit(data: list[Any], datatype: str, name: str) -> MalformedRequest:
    """The error for data of a kind that ``datatype`` does not take; it names the first that is not."""
    takes = {"BOOL": (bool,), "FP16": (int, float), "BF16": (int, float)}
    takes |= {"FP32": (int, float), "FP64": (int, float)}
    wrong = _first_other(data, takes.get(datatype, (int,)))
    reason = f"input {name!r}: 'data' does not fit datatype {datatype}"
    if wrong is not _NOTHING:
        reason += f": it holds {excerpt(wrong)}"
    if wrong is None and datatype in ("FP16", "BF16", "FP32", "FP64"):
        reason += "; write NaN for what is not a number, or send the tensor as binary data"
    elif isinstance(wrong, float):
        reason += f"; {datatype} takes whole numbers within its range"
    return MalformedRequest(reason)


def _first_other(data: list[Any], types: tuple[type, ...]) -> Any:
    for item in data:
        if type(item) is list:
            other = _first_other(item, types)
            if other is not _NOTHING:
                return other
        elif type(item) not in types:
            return item
    return _NOTHING


_NOTHING = object()


def _texts(array: Array, name: str) -> Array:
    if any(type(item) is not str for item in array.ravel()):
        raise MalformedRequest(f"input {name!r}: BYTES data in JSON must be strings")
    flat = np.empty(array.size, dtype=object)
    flat[:] = [item.encode() for item in array.ravel()]
    return flat.reshape(array.shape)


def _whole(data: list[Any], datatype: str, name: str) -> Array:
    try:
        return np.array(data, dtype="<u8")
    except OverflowError:
        negative = np.array(data, dtype=object)
        raise _out_of_range(negative[negative < 0].flat[0], datatype, name) from None


def _out_of_range(value: Any, datatype: str, name: str) -> MalformedRequest:
    return MalformedRequest(f"input {name!r}: {value} is out of the range of {datatype}")


def whole_numbers(array: Array, datatype: str, name: str) -> Array:
    """Whole numbers as an integer ``datatype`` holds them; the first that it does not is named."""
    limits = np.iinfo(DTYPES[datatype])
    if array.size and not (limits.min <= int(array.min()) and int(array.max()) <= limits.max):
        low, high = array < limits.min, array > limits.max
        raise _out_of_range(array[low | high].flat[0], datatype, name)
    return array.astype(DTYPES[datatype])


def _cast(array: Array, datatype: str, name: str) -> Array:
    """Numbers as ``datatype`` holds them; refused where it cannot."""
    dtype = DTYPES[datatype]
    if dtype.kind in "iu" and array.dtype.kind in "iu":
        return whole_numbers(array, datatype, name)
    try:
        with np.errstate(over="raise"):
            cast = array.astype(dtype)
    except FloatingPointError:
        with np.errstate(over="ignore"):
            raise _too_large(array, array.astype(dtype), datatype, name) from None
    if datatype == "BF16":
        cast = from_bytes(to_bytes(cast, "BF16"), "BF16", cast.shape, name)
        if (np.isinf(cast) & np.isfinite(array)).any():
            raise _too_large(array, cast, datatype, name)
    return cast


def _too_large(array: Array, cast: Array, datatype: str, name: str) -> MalformedRequest:
    return _out_of_range(array[np.isinf(cast) & np.isfinite(array)].flat[0], datatype, name)
