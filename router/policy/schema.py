"""The policy's JSON Schema, for editors: completion, descriptions, and errors while typing.

It describes what people write, where the `Policy` says what is kept: a budget condition is a text here.
`router.policy` stays the judge; the schema catches shape and spelling only.
"""

from __future__ import annotations

from typing import Any

from router.policy import Policy

_DURATION_BOUND = r"\s*(<=|>=|<|>)\s*[0-9.]+\s*[a-zA-Z]*\s*"
_ROWS_BOUND = r"\s*(<=|>=|<|>)\s*[0-9]+\s*"
_CLOCK = r"[0-9]{1,2}:[0-9]{2}"
_TEXTS: dict[str, tuple[str, str]] = {
    "BudgetRange": (
        "Bounds on the latency budget: '<= 250ms', or '> 250ms, <= 30s'.",
        f"^{_DURATION_BOUND}(,{_DURATION_BOUND})*$",
    ),
    "RowsRange": (
        "Bounds on the rows of a request: '<= 8', or '> 8, <= 64'.",
        f"^{_ROWS_BOUND}(,{_ROWS_BOUND})*$",
    ),
    "DayTime": (
        "A time of day: '22:00-06:00' (UTC), or '08:00-18:00 Europe/Vienna'.",
        rf"^\s*{_CLOCK}\s*-\s*{_CLOCK}(\s+[A-Za-z0-9_+/-]+)?\s*$",
    ),
}


def schema() -> dict[str, Any]:
    """The schema (draft 2020-12) as JSON values."""
    told = Policy.model_json_schema()
    definitions = told["$defs"]
    for name, (description, pattern) in _TEXTS.items():
        definitions[name] = {"type": "string", "description": description, "pattern": pattern}
    _mended(told)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "hybrid-router policy"} | told


def _mended(node: Any) -> None:
    """Without defaults, which are kept in milliseconds and bytes: in the writer's units they would mislead;
    without titles, which repeat the key; and with names closed to what is none. A property may itself be
    called any of these, so only schemas are mended, not their properties."""
    if isinstance(node, list):
        for item in node:
            _mended(item)
    if not isinstance(node, dict):
        return
    node.pop("default", None)
    node.pop("title", None)
    if "patternProperties" in node:  # names: what does not fit their pattern is no name
        node.setdefault("additionalProperties", False)
    for key, value in node.items():
        for item in value.values() if key in ("properties", "$defs") else (value,):
            _mended(item)
