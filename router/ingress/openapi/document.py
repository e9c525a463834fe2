"""The OpenAPI 3.1 document of what is served: each model's own paths, schemas, limits and an example.

Pure: models and policy in, a dict out. What there is to document comes from `router.ingress.routes`, the
table that requests are dispatched by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from router.ingress.openapi import schemas
from router.ingress.openapi.examples import example
from router.ingress.openapi.parts import (
    INFER_HEADERS,
    RESULT_QUERY,
    SECURITY_SCHEMES,
    TENANT,
    VARIANT,
    infer_parameters,
    json_of,
    problem_answer,
    response_headers,
)
from router.ingress.openapi.schemas import Schema, ref
from router.ingress.routes import TABLE
from router.ingress.semantics import TITLES
from router.policy import Policy
from router.service.requests import ServedModel
from router.units import MAX_BUDGET_MS

_ABOUT = """One endpoint for inference requests of every urgency, in the Open Inference Protocol v2.

A request says how long it can wait, its **latency budget**. The router runs it at once, or lets it wait in a
durable queue, or refuses it with the time to come back. A *version* of a model is one of its variants.

Bodies with binary tensors: `application/octet-stream`, the JSON part first, whose length the header
`Inference-Header-Content-Length` gives; then the bytes of each input that has `binary_data_size` among its
parameters, little-endian, in order.

`HEAD` is answered wherever `GET` is, without the body, and `OPTIONS` on every path, with `Allow`.
"""
#: What each operation may answer beside its result: problem documents.
_OPEN: tuple[int, ...] = ()
_GUARDED = (403, 429, 431)
_OF_MODEL = (403, 404, 414, 431)
_OF_INFER = (400, 403, 404, 408, 409, 410, 413, 414, 415, 422, 429, 431, 503, 504)
_OF_RESULT = (400, 403, 404, 410, 414, 422, 429, 431, 503, 504)
_OPERATIONS: Mapping[str, tuple[str, str, tuple[int, ...]]] = {
    "server": ("The server and its extensions", "Server", _OPEN),
    "live": ("Whether the process answers", "Live", _OPEN),
    "ready": ("Whether every model is ready", "Ready", _OPEN),
    "policy": ("The routing policy in force", "Policy", _GUARDED),
    "models": ("The models that the caller may use", "Models", _GUARDED),
    "model": ("What {model} takes and gives, and its variants", "Model", _OF_MODEL),
    "variant": ("One variant of {model}", "Model", _OF_MODEL),
    "model_ready": ("Whether {model} is ready", "Ready", _OF_MODEL),
    "variant_ready": ("Whether a variant of {model} is ready", "Ready", _OF_MODEL),
    "model_stats": ("What runs and waits for {model} now", "Load", (*_OF_MODEL, 429)),
    "infer": ("Run {model}", "{model}.Answer", _OF_INFER),
    "variant_infer": ("Run one variant of {model}", "{model}.Answer", _OF_INFER),
    "result": ("State and result of a queued request", "Answer", _OF_RESULT),
    "cancel": ("Cancel a queued request", "State", (403, 404, 414, 429, 431, 503)),
    "openapi": ("This document", "OpenAPI", _GUARDED),
    "page": ("A page to try the service on", "", _OPEN),
    "asset": ("A file of that page", "", (404, 414, 431)),
}
_WITHOUT_KEY = frozenset({"server", "live", "ready", "page", "asset"})
_READY = frozenset({"ready", "model_ready", "variant_ready"})
#: What a browser that has a copy gets.
_KEPT = frozenset({"openapi", "page", "asset"})


def document(
    models: Sequence[ServedModel], policy: Policy, version: str, *, server: str = "/", secured: bool = False
) -> dict[str, Any]:
    """The document for a caller who may use ``models``; ``server`` is the path it is all mounted under.

    ``secured``: callers must bring an API key. Bounds and defaults are those of ``policy``.
    """
    paths: dict[str, dict[str, Any]] = {}
    for template, methods in TABLE.items():
        for model in models if "{model}" in template else (None,):
            path = template.replace("{model}", model.name if model else "")
            paths[path] = {
                method.lower(): _operation(name, model, policy, secured) for method, name in methods.items()
            }
    limits = policy.limits
    bodies = schemas.shared(MAX_BUDGET_MS)
    for model in models:
        bodies[f"{model.name}.Request"] = schemas.request(model.inputs, model.outputs, limits.rows)
        bodies[f"{model.name}.Answer"] = schemas.answer(model.name, list(model.variants), model.outputs)
    bodies["Answer"] = {"anyOf": [ref(f"{model.name}.Answer") for model in models]} if models else {}
    bodies["OpenAPI"] = {"type": "object", "required": ["openapi", "info", "paths"]}
    components: dict[str, Any] = {"schemas": bodies}
    if secured:
        components["securitySchemes"] = SECURITY_SCHEMES
    return {
        "openapi": "3.1.0",
        "info": {"title": "hybrid-router", "version": version, "description": _ABOUT},
        "servers": [{"url": server}],
        "tags": [
            *({"name": model.name, "description": _model_text(model, policy)} for model in models),
            {"name": "requests", "description": "Requests that wait in the queue, or waited there."},
            {"name": "server", "description": "The server, its readiness, its policy and this document."},
        ],
        "paths": paths,
        "components": components,
        "x-limits": {
            "body_bytes": limits.body,
            "rows": limits.rows,
            "budget_ms": MAX_BUDGET_MS,
            "default_budget_ms": policy.defaults.budget,
            "default_hold_ms": policy.defaults.hold,
        },
        "x-models": {model.name: _facts(model, policy) for model in models},
    }


def _operation(name: str, model: ServedModel | None, policy: Policy, secured: bool) -> dict[str, Any]:
    summary, schema, problems = _OPERATIONS[name]
    named = model.name if model else ""
    codes = [*problems, 500] if name not in _WITHOUT_KEY else list(problems)
    if secured and name not in _WITHOUT_KEY:
        codes.append(401)
    answers = _answers(name, schema.format(model=named))
    answers |= {str(code): problem_answer(code) for code in codes if str(code) not in answers}
    parameters = _parameters(name, model, policy)
    operation: dict[str, Any] = {
        "operationId": f"{name}.{named}" if named else name,
        "summary": summary.format(model=named),
        "tags": [named or ("requests" if name in ("result", "cancel") else "server")],
        "responses": dict(sorted(answers.items())),
    }
    if parameters:
        operation["parameters"] = parameters
    if model is not None and name in ("infer", "variant_infer"):
        operation["requestBody"] = _body(model, policy)
    if secured:
        operation["security"] = [] if name in _WITHOUT_KEY else [{name: []} for name in SECURITY_SCHEMES]
    return operation


def _parameters(name: str, model: ServedModel | None, policy: Policy) -> list[Schema]:
    parameters: list[Schema] = []
    if model is not None and name.startswith("variant"):
        variants = list(model.variants)
        parameters.append({**VARIANT, "schema": {"type": "string", "enum": variants}, "example": variants[0]})
    if name in ("infer", "variant_infer"):
        parameters += infer_parameters(policy.defaults.budget, MAX_BUDGET_MS)
    if name in ("result", "cancel"):
        parameters.append(INFER_HEADERS["id"])
    if name == "result":
        parameters += [*RESULT_QUERY, INFER_HEADERS["accept"]]
    if name == "asset":
        parameters.append(INFER_HEADERS["asset"])
    if name not in _WITHOUT_KEY and policy.tenants:
        parameters.append(TENANT)
    if name in _KEPT:
        parameters.append(INFER_HEADERS["if-none-match"])
    return parameters


def _answers(name: str, schema: str) -> dict[str, Any]:
    """The answers that are no problem documents."""
    if name in ("infer", "variant_infer", "result"):
        more = ["traceparent", "inference-header-content-length"]
        done = {
            "description": "The result.",
            "headers": response_headers("route", "path", "variant", "queued-ms", "deadline-met")
            | response_headers("predicted-ms", *more, required=False),
            "content": {**json_of(schema), "application/octet-stream": {"schema": {"type": "string"}}},
        }
        linked = {"parameters": {"id": "$response.body#/id"}}
        waits = {
            "description": "The answer comes later; ask for it at Location.",
            "headers": response_headers("location", "retry-after", "path")
            | response_headers("route", "predicted-ms", "preference-applied", "traceparent", required=False),
            "content": json_of("Accepted"),
            "links": {
                "result": {"operationId": "result", **linked},
                "cancel": {"operationId": "cancel", **linked},
            },
        }
        return {"200": done, "202": waits}
    if name in ("page", "asset"):
        kinds = ["text/html"] if name == "page" else ["text/css", "text/javascript", "image/svg+xml"]
        content: dict[str, Any] = {kind: {"schema": {"type": "string"}} for kind in kinds}
    else:
        content = json_of(schema)
    answers: dict[str, Any] = {
        "200": {"description": _OPERATIONS[name][0].format(model="the model"), "content": content}
    }
    if name in _READY:
        answers["503"] = {"description": TITLES[503], "content": json_of(schema)}
    if name in _KEPT:
        answers["200"]["headers"] = response_headers("etag")
        answers["304"] = {
            "description": "The copy that the caller has is the newest.",
            "headers": response_headers("etag"),
        }
    return answers


def _body(model: ServedModel, policy: Policy) -> dict[str, Any]:
    return {
        "required": True,
        "description": f"At most {policy.limits.body} bytes and {policy.limits.rows} rows.",
        "content": {
            "application/json": {
                "schema": ref(f"{model.name}.Request"),
                "examples": {"row": {"summary": "One row", "value": example(model)}},
            },
            "application/octet-stream": {
                "schema": {"type": "string", "format": "binary"},
            },
        },
    }


def _facts(model: ServedModel, policy: Policy) -> dict[str, Any]:
    """What a person wants to know before choosing a variant; times as they were measured for the artifact."""
    section = policy.models[model.name]
    return {
        "inputs": [spec.to_json() for spec in model.inputs],
        "outputs": [spec.to_json() for spec in model.outputs],
        "online": list(section.online.variants) if section.online else [],
        "batch": section.batch.variant if section.batch else None,
        "variants": {
            name: {
                "runtime": manifest.runtime,
                "metric": manifest.metric,
                "quality": dict(manifest.quality),
                "size_bytes": manifest.size_bytes,
                "latency": manifest.profile.to_json()["points"],
            }
            for name, manifest in model.variants.items()
        },
    }


def _model_text(model: ServedModel, policy: Policy) -> str:
    facts = _facts(model, policy)
    takes = ", ".join(f"`{spec.name}` {spec.datatype} {list(spec.shape)}" for spec in model.inputs)
    gives = ", ".join(f"`{spec.name}` {spec.datatype} {list(spec.shape)}" for spec in model.outputs)
    served = [f"online by {', '.join(facts['online'])}"] if facts["online"] else []
    served += [f"from the queue by {facts['batch']}"] if facts["batch"] else []
    return f"Takes {takes}. Gives {gives}. Served {' and '.join(served)}."
