"""An answer for a person, or as one JSON object for a script."""

from __future__ import annotations

from typing import Any

import click
import numpy as np
import orjson

from optimizers.tensors import Array
from router.bulk.results import as_text
from router.sdk.codec import Result
from router.units import format_ms

_SHOWN_VALUES = 40


def as_json(result: Result) -> dict[str, Any]:
    return {
        "outputs": {name: _json(array) for name, array in result.outputs.items()},
        "route": result.route,
        "path": result.path,
        "variant": result.variant,
        "latency_ms": round(result.latency_ms, 3),
        "predicted_ms": result.predicted_ms,
        "queued_ms": result.queued_ms,
        "deadline_met": result.deadline_met,
        "id": result.id,
    }


def as_json_of(id: str, state: str, outcome: Result | Exception) -> dict[str, Any]:
    """The same members for a request in any state: null where it has no result, or no error."""
    answer = as_json(outcome if isinstance(outcome, Result) else Result({}))
    if not isinstance(outcome, Result):
        answer = dict.fromkeys(answer)
    error = str(outcome) if isinstance(outcome, Exception) else None
    return {**answer, "id": id, "state": state, "error": error}


def say_json(value: Any) -> None:
    click.echo(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode())


def say(result: Result) -> None:
    """Outputs, then how they came to be."""
    width = max(len(name) for name in result.outputs)
    for name, array in result.outputs.items():
        value = _text(array).replace("\n", "\n" + " " * (width + 2))
        click.echo(f"{click.style(name.ljust(width), bold=True)}  {value}")
    click.secho(_story(result), dim=True)


def _story(result: Result) -> str:
    times = [format_ms(result.latency_ms)]
    if result.predicted_ms is not None:
        times.append(f"predicted {format_ms(result.predicted_ms)}")
    if result.queued_ms is not None:
        times.append(f"queued {format_ms(result.queued_ms)}")
    parts = [
        f"route {result.route}" if result.route else "",
        result.path or "",
        f"variant {result.variant}" if result.variant else "",
        ", ".join(times),
        {True: "in time", False: "late"}.get(result.deadline_met, "")
        if result.deadline_met is not None
        else "",
    ]
    return " | ".join(part for part in parts if part)


def _json(array: Array) -> Any:
    if array.dtype == object:
        flat = np.empty(array.size, dtype=object)
        flat[:] = as_text(array)
        return flat.reshape(array.shape).tolist()
    return np.ascontiguousarray(array)


def _text(array: Array) -> str:
    """A single value as itself; more of them shortened in the middle."""
    if array.size == 1:
        return as_text(array)[0] if array.dtype == object else str(array.ravel()[0])
    if array.dtype == object:
        texts = as_text(array)
        more = [f"... and {len(texts) - _SHOWN_VALUES} more"] if len(texts) > _SHOWN_VALUES else []
        return "\n".join(texts[:_SHOWN_VALUES] + more)
    return np.array2string(
        array, precision=4, suppress_small=True, threshold=_SHOWN_VALUES, max_line_width=96
    )
