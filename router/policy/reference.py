"""``docs/policy.md``: every key of a policy with its type, default, example and meaning, from the schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from router.policy.conditions.when import CONDITIONS
from router.policy.document import Policy
from router.units import format_ms

_HEAD = """# Policy reference

Every key of a policy file. `hybrid-router policy schema --markdown` writes this page, from what also checks
the file. [Routes](routing.md) shows by example what routes can do.

| type | how to write it |
| --- | --- |
| duration | `50ms`, `2s`, `10min`, `2h`; a plain number is seconds |
| size | `512KiB`, `16MiB`, `4GB`; a plain number is bytes |
| share | `20%` or `0.2` |
| rate | `100/s`, `6000/min`, `5/h` |
| name | letters, digits, `-` and `_`, at most 64 |
"""
_EXAMPLE = " Example: "
_TYPES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}


def reference() -> str:
    """The page, in Markdown."""
    schema = Policy.model_json_schema()
    return "\n".join([_HEAD, *_sections(schema, schema["$defs"], ""), ""])


def _sections(section: dict[str, Any], definitions: dict[str, Any], path: str) -> Iterator[str]:
    """One table for the keys of a section, then those of the sections within it."""
    if path:
        yield f"## `{path}`\n\n{section['description'].replace('``', '`')}\n"
    else:
        yield "## Top level\n"
    yield "| key | type | default | example | meaning |\n| --- | --- | --- | --- | --- |"
    required = section.get("required", ())
    for key, value in section["properties"].items():
        text, _, example = _described(key, value, definitions).partition(_EXAMPLE)
        cells = (
            _type(value, definitions),
            _default(value, key in required),
            example.replace("``", "`"),
            text,
        )
        yield "| " + " | ".join([f"`{key}`", *(cell.replace("|", "\\|") for cell in cells)]) + " |"
    yield ""
    for key, value in section["properties"].items():
        for name, suffix in _within(value):
            if "properties" in definitions[name]:
                yield from _sections(definitions[name], definitions, f"{path}.{key}{suffix}".lstrip("."))


def _described(key: str, value: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "description" in value:
        return " ".join(value["description"].split())
    ((name, _),) = _within(value)
    text = " ".join(definitions[name]["description"].replace("``", "`").split())
    return f"{text}{_EXAMPLE}`{CONDITIONS[key].EXAMPLE}`"


def _within(value: dict[str, Any], suffix: str = "") -> Iterator[tuple[str, str]]:
    """The definitions that a value may be, and what to write after its key to reach their keys."""
    if "$ref" in value:
        yield value["$ref"].rpartition("/")[2], suffix
    for other in value.get("anyOf", value.get("oneOf", ())):
        yield from _within(other, suffix)
    if "items" in value:
        yield from _within(value["items"], f"{suffix}[]")
    for named in _by_name(value):
        yield from _within(named, f"{suffix}.NAME")


def _by_name(value: dict[str, Any]) -> list[dict[str, Any]]:
    more = value.get("additionalProperties")
    return [*value.get("patternProperties", {}).values(), *([more] if isinstance(more, dict) else [])]


def _type(value: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "x-kind" in value:
        return str(value["x-kind"])
    if "$ref" in value:
        definition = definitions[value["$ref"].rpartition("/")[2]]
        return "section" if "properties" in definition else _type(definition, definitions)
    if "enum" in value:
        return " or ".join(f"`{item}`" for item in value["enum"])
    choices = [other for other in value.get("anyOf", value.get("oneOf", ())) if other.get("type") != "null"]
    if choices:
        return " or ".join(dict.fromkeys(_type(other, definitions) for other in choices))
    if "items" in value:
        return f"list: {_type(value['items'], definitions)}"
    if named := _by_name(value):
        return f"by name: {_type(named[0], definitions)}"
    if isinstance(value.get("type"), list):
        return " or ".join(_TYPES[kind] for kind in value["type"])
    return "path" if value.get("format") == "path" else _TYPES[value["type"]]


def _default(value: dict[str, Any], required: bool) -> str:
    default, kind = value.get("default"), _kind(value)
    if required:
        return "required"
    if default in (None, [], {}) or isinstance(default, dict):
        return ""
    if isinstance(default, list):
        return f"`[{', '.join(map(str, default))}]`"
    if kind == "duration":
        return f"`{format_ms(default)}`"
    if kind == "size":
        return f"`{default >> 30}GiB`" if default >= 1 << 30 else f"`{default >> 20}MiB`"
    if kind == "share":
        return f"`{default:.4g}`" if default in (0, 1) else f"`{default:.4%}`".replace(".0000%", "%")
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _kind(value: dict[str, Any]) -> str:
    return str(
        value.get("x-kind") or next((c["x-kind"] for c in value.get("anyOf", ()) if "x-kind" in c), "")
    )
