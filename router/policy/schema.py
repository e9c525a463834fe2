"""The policy's JSON Schema, for editors: completion, descriptions, and errors while typing.

It describes what people write, where the `Policy` says what is kept: a budget condition is a text here.
`router.policy` stays the judge; the schema catches shape and spelling only.
"""

from __future__ import annotations

from typing import Any

from router.policy import Policy

_CONDITION = r"\s*(<=|>=|<|>)\s*[0-9.]+\s*[a-zA-Z]*\s*"


def schema() -> dict[str, Any]:
    """The schema (draft 2020-12) as JSON values."""
    told = Policy.model_json_schema()
    definitions = told["$defs"]
    definitions["BudgetRange"] = {
        "type": "string",
        "description": "Bounds on the latency budget: '<= 250ms', or '> 250ms, <= 30s'.",
        "pattern": f"^{_CONDITION}(,{_CONDITION})*$",
    }
    one_or_more = definitions["When"]["properties"]["model"]
    one_or_more["anyOf"].insert(0, {"type": "string"})
    _without_defaults(told)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "hybrid-router policy"} | told


def _without_defaults(node: Any) -> None:
    """Defaults are kept in milliseconds and bytes: in the writer's units they would mislead. Titles repeat
    the key. A property may itself be called either, so only schemas are stripped, not their properties."""
    if isinstance(node, list):
        for item in node:
            _without_defaults(item)
    if not isinstance(node, dict):
        return
    node.pop("default", None)
    node.pop("title", None)
    for key, value in node.items():
        for item in value.values() if key in ("properties", "$defs") else (value,):
            _without_defaults(item)
