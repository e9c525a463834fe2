"""The bodies of requests and answers as JSON Schemas, made from tensor specifications. Pure.

Source: Open Inference Protocol v2 (REST), JSON Schema 2020-12 as OpenAPI 3.1 uses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optimizers.tensors import DTYPES, TensorSpec
from router.ingress.codec.protocol import MAX_ID_CHARS, MAX_PARAMETERS, MAX_TENSORS
from workers.queue.job import JobState

Schema = dict[str, Any]

_QUEUE_STATE: Schema = {"type": "string", "enum": ["none", "known", "unknown"]}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def text(description: str, **more: Any) -> Schema:
    return {"type": "string", "description": description, **more}


def number(description: str, **more: Any) -> Schema:
    return {"type": "number", "description": description, **more}


def record(properties: Mapping[str, Schema], required: Sequence[str] = (), **more: Any) -> Schema:
    """An object; members that are not listed may be there too."""
    return {"type": "object", "properties": dict(properties), "required": list(required), **more}


def element(datatype: str) -> Schema:
    """What one element of a tensor looks like in JSON."""
    if datatype == "BYTES":
        return {"type": "string"}
    kind, size = DTYPES[datatype].kind, DTYPES[datatype].itemsize * 8
    if kind == "b":
        return {"type": "boolean"}
    if kind == "f":
        return {"type": "number"}
    low, high = (0, (1 << size) - 1) if kind == "u" else (-(1 << size - 1), (1 << size - 1) - 1)
    return {"type": "integer", "minimum": low, "maximum": high}


def _shape(spec: TensorSpec, rows: int) -> Schema:
    sizes: list[Schema] = [{"type": "integer", "minimum": 1, "maximum": rows, "description": "rows"}]
    for size in spec.shape[1:]:
        sizes.append({"type": "integer", "minimum": 0} if size < 0 else {"type": "integer", "const": size})
    return {"type": "array", "prefixItems": sizes, "minItems": len(sizes), "maxItems": len(sizes)}


def _nested(spec: TensorSpec, rows: int) -> Schema:
    """Lists in lists, as deep as the shape is long."""
    data = element(spec.datatype)
    for size in reversed(spec.shape[1:]):
        bounds = {} if size < 0 else {"minItems": size, "maxItems": size}
        data = {"type": "array", "items": data, **bounds}
    return {"type": "array", "items": data, "minItems": 1, "maxItems": rows}


def _input(spec: TensorSpec, rows: int) -> Schema:
    flat = {"type": "array", "items": element(spec.datatype), "description": "flat, the last axis fastest"}
    forms = [flat] if len(spec.shape) == 1 else [_nested(spec, rows), flat]
    return record(
        {
            "name": {"type": "string", "const": spec.name},
            "datatype": {"type": "string", "const": spec.datatype},
            "shape": _shape(spec, rows),
            "data": {
                "anyOf": forms,
                "description": "As many elements as the shape holds, nested or flat. "
                "In a body with binary tensors 'parameters.binary_data_size' stands in its place.",
            },
        },
        ["name", "datatype", "shape", "data"],
    )


def request(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], rows: int) -> Schema:
    """The body of an inference request in JSON."""
    entries = [_input(spec, rows) for spec in inputs]
    wanted = record(
        {
            "name": {"type": "string", "enum": [spec.name for spec in outputs]},
            "parameters": record({"binary_data": {"description": "true: as a binary tensor"}}),
        },
        ["name"],
    )
    return record(
        {
            "id": text("The caller's own name for the request; the answer has it.", maxLength=MAX_ID_CHARS),
            "parameters": ref("RequestParameters"),
            "inputs": {
                "type": "array",
                "items": entries[0] if len(entries) == 1 else {"anyOf": entries},
                "minItems": len(entries),
                "maxItems": len(entries),
                "description": "Every input of the model once, in any order, all with as many rows.",
            },
            "outputs": {
                "type": "array",
                "items": wanted,
                "maxItems": MAX_TENSORS,
                "description": "The outputs to answer with; without it all.",
            },
        },
        ["inputs"],
    )


def _output(spec: TensorSpec) -> Schema:
    return record(
        {
            "name": {"type": "string", "const": spec.name},
            "datatype": {"type": "string", "const": spec.datatype},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "data": {
                "type": "array",
                "items": element(spec.datatype),
                "description": "Flat, the last axis fastest. NaN, infinity, and bytes that are no text come "
                "as binary data only.",
            },
        },
        ["name", "datatype", "shape", "data"],
    )


def answer(model: str, variants: Sequence[str], outputs: Sequence[TensorSpec]) -> Schema:
    """The body of an answer in JSON."""
    entries = [_output(spec) for spec in outputs]
    return record(
        {
            "model_name": {"type": "string", "const": model},
            "model_version": {
                "type": "string",
                "enum": list(variants),
                "description": "The variant that ran.",
            },
            "id": {"type": "string"},
            "parameters": ref("AnswerParameters"),
            "outputs": {"type": "array", "items": entries[0] if len(entries) == 1 else {"anyOf": entries}},
        },
        ["model_name", "model_version", "id", "parameters", "outputs"],
    )


_TENSOR = record(
    {
        "name": {"type": "string"},
        "datatype": {"type": "string", "enum": list(DTYPES)},
        "shape": {
            "type": "array",
            "items": {"type": "integer", "minimum": -1},
            "description": "The rows first; -1 stands for any size.",
        },
    },
    ["name", "datatype", "shape"],
)

_READY: Schema = record(
    {
        "ready": {"type": "boolean"},
        "name": {"type": "string"},
        "queues": {**_QUEUE_STATE, "description": "The state of all queues: unknown where one is."},
        "queue": {**_QUEUE_STATE, "description": "The state of the model's queue."},
    },
    ["ready"],
)
_LOAD: Schema = record(
    {
        "name": {"type": "string"},
        "online": {"type": "object"},
        "queue": {"type": "object"},
        "queue_known": {
            "type": "boolean",
            "description": "Whether the queue's statistics can be had; 'queue' is absent otherwise.",
        },
    },
    ["name"],
    description="What runs and waits for the model now.",
)
_MODEL = record(
    {
        "name": {"type": "string"},
        "versions": {"type": "array", "items": {"type": "string"}, "description": "The variants."},
        "platform": {"type": "string"},
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {"type": "array", "items": _TENSOR},
        "parameters": {
            "type": "object",
            "additionalProperties": record(
                {
                    "runtime": {"type": "string"},
                    "quality": {"type": "object", "additionalProperties": {"type": "number"}},
                    "size_bytes": {"type": "integer"},
                },
                ["runtime", "quality", "size_bytes"],
            ),
        },
    },
    ["name", "versions", "platform", "inputs", "outputs"],
)


def _problem() -> Schema:
    return record(
        {
            "type": {"type": "string", "format": "uri-reference"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": text("What is wrong, and how to mend it."),
            "error": text("The same sentence, where the Open Inference Protocol has it."),
            "kind": text("Why a request was not admitted: miss, full, quota, unserved."),
            "state": text("How a queued request ended."),
            "id": text("The queued request."),
        },
        ["type", "title", "status", "detail", "error"],
        description="A problem document (RFC 9457).",
    )


def _request_parameters(max_budget_ms: float) -> Schema:
    return record(
        {
            "latency_budget_ms": number(
                "How long the answer may take. It goes before the header Latency-Budget-Ms.",
                exclusiveMinimum=0,
                maximum=max_budget_ms,
            ),
            # What is not looked at is not checked either: these take anything.
            "timeout": {
                "description": "The budget in microseconds, as Triton's clients send it; the last to be "
                f"looked at. Above 0 and at most {max_budget_ms * 1_000.0:.0f}; 0 is none.",
                "examples": [500_000],
            },
            "binary_data_output": {
                "description": "true: answer with binary tensors, unless an output says otherwise.",
                "examples": [True],
            },
        },
        maxProperties=MAX_PARAMETERS,
        additionalProperties={"type": ["string", "number", "boolean", "null"]},
        description="Others may be there too; a policy can ask about them.",
    )


def shared(max_budget_ms: float) -> dict[str, Schema]:
    """The schemas that no model changes, by name."""
    boolean = {"type": "boolean"}
    queued = {"type": "string", "enum": [state.value for state in JobState if not state.terminal]}
    return {
        "Problem": _problem(),
        "RequestParameters": _request_parameters(max_budget_ms),
        "AnswerParameters": record(
            {
                "route": text("The policy's route that took the request."),
                "path": {"type": "string", "enum": ["online", "batch"]},
                "variant": text("The variant that ran."),
                "queued_ms": number("How long the request waited before it ran."),
                "predicted_ms": number("What was predicted on arrival."),
                "deadline_met": {**boolean, "description": "Whether the answer was ready within the budget."},
            },
            ["route", "path", "variant", "queued_ms", "deadline_met"],
        ),
        "Accepted": record(
            {
                "id": {"type": "string"},
                "state": queued,
                "route": {"type": "string"},
                "predicted_ms": number("When the answer is predicted to be there, counted from arrival."),
            },
            ["id", "state"],
            description="The request waits in the queue, or runs there.",
        ),
        "State": record(
            {"id": {"type": "string"}, "state": {"type": "string", "enum": [s.value for s in JobState]}},
            ["id", "state"],
        ),
        "Server": record(
            {
                "name": {"type": "string"},
                "version": {"type": "string"},
                "extensions": {"type": "array", "items": {"type": "string"}},
            },
            ["name", "version", "extensions"],
        ),
        "Live": record({"live": boolean}, ["live"]),
        "Ready": _READY,
        "Policy": record(
            {
                "digest": text("The policy in force: 12 hex digits of its text's SHA-256."),
                "state": {
                    "type": "string",
                    "enum": ["applied", "needs redeploy", "refused"],
                    "description": "What became of the policy file as it is now.",
                },
                "pending": {
                    "type": ["object", "null"],
                    "description": "The file that is not in force: its digest, and since when. The server's "
                    "log says why.",
                },
            },
            ["digest", "state"],
        ),
        "Model": _MODEL,
        "Models": record({"models": {"type": "array", "items": ref("Model")}}, ["models"]),
        "Load": _LOAD,
    }
