"""The policy's JSON Schema, for editors: completion, descriptions, and errors while typing.

It describes what people write, where the `Policy` says what is kept: a budget condition is a text here.
`router.policy` stays the judge; the schema catches shape and spelling only.
"""

from __future__ import annotations

from typing import Any

from router.policy.document import Policy


def schema() -> dict[str, Any]:
    """The schema (draft 2020-12) as JSON values."""
    document = Policy.model_json_schema()
    _tidy(document)
    title = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "hybrid-router policy"}
    return title | document


def _tidy(node: Any) -> None:
    """Take out what misleads or repeats, and close names to what is none.

    Defaults are kept in milliseconds and bytes, not in the writer's units; titles repeat the key; kinds are
    for the reference. A property may itself be called any of these: only schemas lose them.
    """
    if isinstance(node, list):
        for item in node:
            _tidy(item)
    if not isinstance(node, dict):
        return
    node.pop("default", None)
    node.pop("title", None)
    node.pop("x-kind", None)
    if "patternProperties" in node:  # names: what does not fit their pattern is no name
        node.setdefault("additionalProperties", False)
    for key, value in node.items():
        for item in value.values() if key in ("properties", "$defs") else (value,):
            _tidy(item)
