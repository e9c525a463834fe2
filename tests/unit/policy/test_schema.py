"""The schema for editors is the policy's own, and accepts what the policy accepts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
import yaml

from router import policy
from router.policy.reference import reference
from router.policy.schema import schema

ROOT = Path(__file__).parents[3]
VALIDATOR = jsonschema.Draft202012Validator(schema())


def test_the_file_that_editors_read_is_the_schema_of_this_version() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    written = orjson.loads((ROOT / "configs/policy.schema.json").read_bytes())
    assert written == schema(), "run: hybrid-router policy schema > configs/policy.schema.json"


@pytest.mark.parametrize(
    "path", sorted(p.name for p in ROOT.glob("configs/*.yaml") if p.name != "serve.yaml")
)
def test_every_policy_in_configs_fits_it(path: str) -> None:
    text = (ROOT / "configs" / path).read_text()
    assert VALIDATOR.is_valid(yaml.safe_load(text))
    assert policy.parse(text).models


def test_the_page_of_all_keys_is_that_of_this_version() -> None:
    page = (ROOT / "docs/policy.md").read_text(encoding="utf-8")
    assert page == reference(), "run: hybrid-router policy schema --markdown > docs/policy.md"


def test_every_key_has_a_meaning_and_an_example() -> None:
    keys = [line for line in reference().splitlines() if re.match(r"\| `[a-z_]+` \|", line)]
    assert len(keys) > 80
    for line in keys:
        kind, _, example, meaning = re.split(r"(?<!\\) \| ", line.strip("| "))[1:]
        assert kind and example and meaning, line


def routes(**given: Any) -> dict[str, Any]:
    return {"routes": [{"name": "r", "to": "online", **given}]}


def when(**given: Any) -> dict[str, Any]:
    return routes(when=given)


KEY = "sha256:" + "0a" * 32
BASE: dict[str, Any] = {"models": {"m": {"artifacts": "a", "online": {"variants": ["v"]}}}}


@pytest.mark.parametrize(
    "more",
    [
        {"defaults": {"budget": "1.5s", "results": {"keep": 60}}},
        {"limits": {"body": "16MiB", "queue": {"bytes": 1024}}},
        {"routes": [{"name": "r", "to": "online", "when": {"model": "m", "budget": "> 250ms, <= 30s"}}]},
        {"routes": [{"name": "r", "to": "auto", "when": {"model": ["m"]}, "on_miss": ["reject"]}]},
        {"models": {"m": {"artifacts": "a", "batch": {"variant": "v", "workers": {"min": 0, "max": 2}}}}},
        when(rows="> 8, <= 64"),
        when(time="22:00-06:00"),
        when(time="08:00-18:00 America/Argentina/Buenos_Aires"),
        when(header={"X-Tier": "gold", "X-Name": ["a", "*"]}),
        when(parameter={"explain": True, "k": [1, 2.5, "x"]}),
        {**when(tenant="acme"), "tenants": {"acme": {}}},
        {**when(tenant=["acme", "zoo"]), "tenants": {"acme": {}, "zoo": {}}},
        routes(variants="v", margin="25%", shadow={"variant": "v", "share": "5%"}),
        routes(variants=["v"], margin=0.25, split={"v": 1}, shadow={"variant": "v", "share": 0.05}),
        {"tenants": {"acme": {"keys": [KEY], "weight": 2.5, "models": "m"}}},
        {"tenants": {"acme": {"rate": "100/s", "burst": 5, "row_rate": "6000 / min", "in_flight": 3}}},
        {"tenants": {"acme": {"queue": {"jobs": 5, "bytes": "1MiB"}}}, "limits": {"tenant": {"rate": "5/h"}}},
    ],
)
def test_what_the_policy_takes_the_schema_takes(more: dict[str, Any]) -> None:
    assert policy.Policy.model_validate(BASE | more)
    assert VALIDATOR.is_valid(BASE | more)


@pytest.mark.parametrize(
    "more",
    [
        {"defaults": {"budget": "soon"}},
        {"defaults": {"budgets": "1s"}},
        {"routes": [{"name": "r", "to": "somewhere"}]},
        {"routes": [{"name": "r", "to": "online", "when": {"budget": "250ms"}}]},
        {"models": {}},
        when(rows=8),
        when(rows="<= 8s"),
        when(time="noon"),
        when(time=22),
        when(header={"X-Tier": 3}),
        when(header={"X-Tier": []}),
        when(parameter={"k": {"a": 1}}),
        when(parameter={"k": []}),
        when(tenant="a b"),
        when(headers={"X-Tier": "gold"}),
        routes(variants=[]),
        routes(margin="some"),
        routes(margin=-1),
        routes(split={"v": -1}),
        routes(shadow={"share": "5%"}),
        routes(shadow="v"),
        {"tenants": {"acme": {"keys": ["hr_in_the_clear"]}}},
        {"tenants": {"acme": {"keys": [KEY.upper()]}}},
        {"tenants": {"acme": {"weight": 0}}},
        {"tenants": {"acme": {"rate": 100}}},
        {"tenants": {"acme": {"rate": "100/fortnight"}}},
        {"tenants": {"acme": {"in_flight": 0}}},
        {"tenants": {"a b": {}}},
        {"tenants": {"acme": {"password": "x"}}},
    ],
)
def test_what_an_editor_should_underline_it_does(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        policy.Policy.model_validate(BASE | more)
    assert not VALIDATOR.is_valid(BASE | more)
