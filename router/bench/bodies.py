"""What the replayed requests carry: rows of a file, or rows made to fit the model, encoded beforehand."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson

from optimizers.tensors import Array, TensorSpec
from router.bulk import chunks
from router.bulk.errors import InputError
from router.bulk.source import open_source
from router.sdk import codec
from router.sdk.codec import ModelInfo, Tensor
from router.simulate.workload import Request

#: So many different bodies for requests of one kind, as long as they stay within the bytes.
_EACH, _MAX_BYTES = 256, 32 << 20
_MAX_ROWS = 4_096
_FREE_AXIS = 16
_SENTENCES = (
    "When will the new card be here?",
    "I was charged twice for the same taxi ride on Friday evening.",
    "Please change the address of my account, I have moved to another city.",
    "What is the rate if I pay in another currency while I am abroad?",
    "My transfer is still pending and the landlord is waiting for his rent since Monday morning.",
    "Help, the machine kept my card!",
    "Can my daughter have an account?",
    "A payment that I do not know stands on my statement, and nobody answers the telephone.",
)


@dataclass(frozen=True, slots=True)
class Body:
    """One request's content, and the header lines that belong to it."""

    head: bytes
    content: bytes


class _Kind(NamedTuple):
    """What the bodies of two requests must have in common to be exchanged."""

    model: str
    rows: int
    parameters: bytes


class Bodies:
    """Bodies by what they depend on, taken in turn."""

    def __init__(self, by_kind: Mapping[_Kind, Sequence[Body]]) -> None:
        self._by_kind = by_kind

    def of(self, request: Request, number: int) -> Body:
        """The body of the ``number``-th request."""
        ready = self._by_kind[_kind(request)]
        return ready[number % len(ready)]


def prepare(
    requests: Iterable[Request], models: Mapping[str, ModelInfo], data: Path | None, seed: int
) -> Bodies:
    """Every body that the requests need. Raises InputError for a file whose rows do not fit a model."""
    kinds = sorted({_kind(request) for request in requests})
    pools: dict[str, list[Sequence[Tensor]]] = {}
    for name in sorted({kind.model for kind in kinds}):
        info = models[name]
        pools[name] = _read(data, info) if data else _generated(info, seed)
    return Bodies({kind: _bodies(pools[kind.model], kind.rows, kind.parameters) for kind in kinds})


def _kind(request: Request) -> _Kind:
    # As text: true and 1 are equal values, and two parameters.
    parameters = orjson.dumps(dict(request.parameters), option=orjson.OPT_SORT_KEYS)
    return _Kind(request.model, request.rows, parameters)


def _read(path: Path, model: ModelInfo) -> list[Sequence[Tensor]]:
    """The file's first rows, each with its batch axis."""
    raw = next(open_source(path, model).chunks(0, _MAX_ROWS), None)
    if raw is None:
        raise InputError(f"{path}: no rows in it")
    batches, failures = chunks.arrange(raw, model)
    if failures:
        number, reason = failures[0]
        raise InputError(f"{path}: row {number}: {reason}")
    return [
        [Tensor(t.name, t.datatype, t.array[at : at + 1]) for t in batch.tensors]
        for batch in batches
        for at in range(len(batch.rows))
    ]


def _generated(model: ModelInfo, seed: int) -> list[Sequence[Tensor]]:
    if not model.inputs:
        raise InputError(f"the server does not say what model {model.name!r} takes")
    draw, text = np.random.default_rng(seed), random.Random(seed)
    return [
        [Tensor(spec.name, spec.datatype, _row(spec, draw, text)) for spec in model.inputs]
        for _ in range(_EACH)
    ]


def _row(spec: TensorSpec, draw: np.random.Generator, text: random.Random) -> Array:
    shape = (1, *(_FREE_AXIS if size == -1 else size for size in spec.shape[1:]))
    if spec.datatype == "BYTES":
        row = np.empty(shape, dtype=object)
        row.ravel()[:] = [text.choice(_SENTENCES).encode() for _ in range(row.size)]
        return row
    if spec.dtype.kind in "iu":
        return draw.integers(0, 10, shape).astype(spec.dtype)
    if spec.dtype.kind == "b":
        return draw.integers(0, 2, shape).astype(spec.dtype)
    return draw.standard_normal(shape).astype(spec.dtype)


def _bodies(pool: Sequence[Sequence[Tensor]], rows: int, parameters: bytes) -> list[Body]:
    bodies: list[Body] = []
    size = at = 0
    # Rows of unequal shapes cannot share a request; the first row's shape then stands for all.
    shape = [t.array.shape for t in pool[0]]
    alike = [row for row in pool if rows == 1 or [t.array.shape for t in row] == shape]
    while len(bodies) < min(_EACH, len(alike)) and (not bodies or size < _MAX_BYTES):
        taken = [alike[(at + offset) % len(alike)] for offset in range(rows)]
        at += rows
        content, json_bytes = codec.encode(codec.stack(taken), None, orjson.loads(parameters))
        head = (
            b"Content-Type: application/octet-stream\r\nAccept: application/octet-stream\r\n"
            b"Inference-Header-Content-Length: %d\r\n" % json_bytes
        )
        bodies.append(Body(head, content))
        size += len(content)
    return bodies
