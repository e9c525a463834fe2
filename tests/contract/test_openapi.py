"""The OpenAPI document: valid, true to the dispatch table and to the policy, with examples that work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from optimizers.tensors import TensorSpec
from router.ingress import routes, semantics
from router.ingress.openapi.document import document
from router.ingress.semantics import HttpError
from router.policy import parse
from router.policy.tenants import Tenant
from router.service.api_keys import hash_key
from router.service.requests import ServedModel
from tests.support.served import POLICY, manifest, serving
from tests.support.virtual_time import in_virtual_time

FIXED = ("m", "o")


def served_model(name: str, *inputs: TensorSpec, notes: dict[str, Any] | None = None) -> ServedModel:
    one = replace(manifest(name, "v"), notes=notes or {})
    return ServedModel(name, inputs, (TensorSpec("y", "FP32", (-1, 1)),), {"v": one}, None, None)


@cache
def made(secured: bool = False) -> dict[str, Any]:
    models = [served_model(name, TensorSpec("x", "FP32", (-1, 1))) for name in FIXED]
    return document(models, parse(POLICY), "1.2.3", server="/ml", secured=secured)


def operations(shown: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in shown["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


@pytest.mark.parametrize("secured", [False, True])
def test_it_is_an_openapi_3_1_document(secured: bool) -> None:
    assert not list(OpenAPIV31SpecValidator(made(secured)).iter_errors())


def test_whatever_is_dispatched_is_documented() -> None:
    found = {(method, name) for methods in routes.TABLE.values() for method, name in methods.items()}
    told = {
        (method, operation["operationId"].partition(".")[0]) for _, method, operation in operations(made())
    }
    assert told == found
    per_model = {
        name for path, methods in routes.TABLE.items() if "{model}" in path for name in methods.values()
    }
    ids = {operation["operationId"] for _, _, operation in operations(made())}
    assert {f"{name}.{model}" for name in per_model for model in FIXED} <= ids


def test_whatever_is_documented_is_dispatched_and_nothing_else_at_its_path() -> None:
    for path, method, operation in operations(made()):
        name, _, model = operation["operationId"].partition(".")
        found = routes.find(method, path)
        assert found.operation == name
        assert found.arguments.get("model", "") == model
        open_parts = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
        assert open_parts == set(found.arguments) - {"model"}
        told = {m.upper() for m in made()["paths"][path]}
        told |= {"HEAD"} if "GET" in told else set()  # not documented one by one: it is GET without a body
        for other in {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"} - told:
            with pytest.raises(HttpError) as refused:
                routes.find(other, path)
            assert refused.value.status == 405


def test_each_operation_of_the_table_has_a_door_behind_it() -> None:
    @in_virtual_time
    async def play() -> None:
        async with serving() as served:
            for path, method, operation in operations((await served.client.get("/openapi.json")).json()):
                values = {"id": "m.r.1", "variant": "v", "asset": "page.css"}
                reply = await served.client.request(method, path.format(**values))
                assert str(reply.status_code) in operation["responses"], (method, path, reply.text)
                assert reply.status_code < 500

    play()


def test_every_status_with_a_title_is_among_the_answers() -> None:
    told = {
        int(code) for _, _, operation in operations(made(secured=True)) for code in operation["responses"]
    }
    # 405 is the answer to methods that the document does not have.
    assert told >= set(semantics.TITLES) - {405}
    assert told - set(semantics.TITLES) == {200, 202, 304, 308} & told


def test_bounds_and_defaults_are_the_policys() -> None:
    shown = made()
    assert shown["x-limits"] == {
        "body_bytes": 64 << 10,
        "rows": 16,
        "budget_ms": 30 * 24 * 3_600_000.0,
        "default_budget_ms": 2_000.0,
        "default_hold_ms": 10_000.0,
    }
    rows = shown["components"]["schemas"]["m.Request"]["properties"]["inputs"]["items"]["properties"]["shape"]
    assert rows["prefixItems"][0]["maximum"] == 16
    assert shown["servers"] == [{"url": "/ml"}]
    assert shown["x-models"]["o"]["batch"] is None
    assert shown["x-models"]["m"]["variants"]["v"]["latency"][0]["batch"] == 1


def test_keys_are_asked_for_where_the_policy_has_them() -> None:
    for path, _, operation in operations(made(secured=True)):
        kind = operation["operationId"].partition(".")[0]
        is_open = kind in ("server", "live", "ready", "page", "asset")
        assert operation["security"] == ([] if is_open else [{"bearer": []}, {"key": []}]), path
        assert ("401" in operation["responses"]) is not is_open
    assert all("security" not in operation for _, _, operation in operations(made()))


@pytest.mark.parametrize(
    ("datatype", "right", "wrong"),
    [
        ("BOOL", True, 1),
        ("UINT8", 255, 256),
        ("INT64", -(1 << 63), 1 << 63),
        ("FP32", 0.5, "0.5"),
        ("BYTES", "text", 1),
    ],
)
def test_a_tensors_schema_takes_its_datatype_nested_or_flat_and_no_other(
    datatype: str, right: Any, wrong: Any
) -> None:
    shown = document([served_model("m", TensorSpec("x", datatype, (-1, 2)))], parse(POLICY), "1")
    schema = {"$ref": "#/components/schemas/m.Request", "components": shown["components"]}
    check = Draft202012Validator(schema)

    def body(data: Any, shape: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
        return {"inputs": [{"name": "x", "datatype": datatype, "shape": list(shape), "data": data}]}

    assert check.is_valid(body([right, right]))
    assert check.is_valid(body([[right, right]]))
    assert not check.is_valid(body([wrong, wrong]))
    assert not check.is_valid(body([[right]]))
    assert not check.is_valid(body([right, right], (1, 3)))
    assert not check.is_valid({"inputs": []})


def test_an_example_is_the_row_that_the_artifact_keeps_or_one_of_the_right_form() -> None:
    image, name = TensorSpec("image", "FP32", (-1, 2, -1)), TensorSpec("name", "BYTES", (-1,))
    row = {"image": {"shape": [1, 2, 1], "data": [0.25, 0.5]}}
    shown = document([served_model("m", image, name, notes={"example": row})], parse(POLICY), "1")
    operation = shown["paths"]["/v2/models/m/infer"]["post"]
    value = operation["requestBody"]["content"]["application/json"]["examples"]["row"]["value"]
    assert value["inputs"] == [
        {"name": "image", "datatype": "FP32", "shape": [1, 2, 1], "data": [0.25, 0.5]},
        {"name": "name", "datatype": "BYTES", "shape": [1], "data": ["text"]},
    ]


@in_virtual_time
async def test_the_example_of_each_model_is_answered_as_the_document_says() -> None:
    async with serving() as served:
        shown = (await served.client.get("/openapi.json")).json()
        for model in FIXED:
            path = f"/v2/models/{model}/infer"
            content = shown["paths"][path]["post"]["requestBody"]["content"]["application/json"]
            reply = await served.client.post(path, json=content["examples"]["row"]["value"])
            assert reply.status_code == 200
            schema = {"$ref": f"#/components/schemas/{model}.Answer", "components": shown["components"]}
            Draft202012Validator(schema).validate(reply.json())


@in_virtual_time
async def test_the_document_is_made_once_for_a_policy_and_kept_by_its_tag() -> None:
    async with serving() as served:
        first = await served.client.get("/openapi.json")
        tag = first.headers["etag"]
        kept = await served.client.get("/openapi.json", headers={"if-none-match": f'"other", W/{tag}'})
        assert (kept.status_code, kept.content, kept.headers["etag"]) == (304, b"", tag)
        policy = served.service.policy
        limits = policy.limits.model_copy(update={"rows": 7})
        served.service.apply_policy(policy.model_copy(update={"limits": limits}))
        other = await served.client.get("/openapi.json", headers={"if-none-match": tag})
        assert (other.status_code, other.json()["x-limits"]["rows"]) == (200, 7)


@in_virtual_time
async def test_with_keys_the_document_needs_one_and_shows_what_its_tenant_may_use() -> None:
    async with serving() as served:
        tenant = Tenant(keys=(hash_key("hr_k"),), models=("o",))
        served.service.apply_policy(served.service.policy.model_copy(update={"tenants": {"t": tenant}}))
        refused = await served.client.get("/openapi.json")
        assert refused.status_code == 401
        shown = await served.client.get("/openapi.json", headers={"authorization": "Bearer hr_k"})
        assert list(shown.json()["x-models"]) == ["o"]
        assert "securitySchemes" in shown.json()["components"]
        # The page itself holds nothing, and asks for the key.
        assert (await served.client.get("/docs")).status_code == 200


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/docs", "text/html"), ("/docs/page.css", "text/css"), ("/docs/page.js", "text/javascript")],
)
def test_the_page_comes_from_here_alone_and_is_kept_by_its_tag(path: str, kind: str) -> None:
    @in_virtual_time
    async def play() -> None:
        async with serving(root_path="/ml") as served:
            reply = await served.client.get(path)
            assert (reply.status_code, reply.headers["content-type"].partition(";")[0]) == (200, kind)
            policy = reply.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
            assert "://" not in reply.text.replace("http://www.w3.org/2000/svg", "")
            kept = await served.client.get(path, headers={"if-none-match": reply.headers["etag"]})
            assert (kept.status_code, kept.content) == (304, b"")
            assert "content-length" not in kept.headers
            again = await served.client.get(f"{path}/nothing.js")
            assert again.status_code == 404

    play()
