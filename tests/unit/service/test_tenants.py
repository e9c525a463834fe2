"""Tenants at the door: keys, models, quotas, and that nobody sees what is another's."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from router.ingress.grpc.messages import message
from router.ingress.grpc.raw_message import RawMessage
from router.service.api_keys import hash_key
from tests.support.served import POLICY, Served, serving
from tests.support.virtual_time import in_virtual_time, now_ms, settled
from tests.unit.ingress.test_grpc_methods import Context, door

TENANTS = f"""
tenants:
  acme: {{keys: ["{hash_key("hr_acme")}"], models: m}}
  zoo: {{keys: ["{hash_key("hr_zoo")}"]}}
"""
GUARDED = POLICY + TENANTS
ACME, ZOO = {"Authorization": "Bearer hr_acme"}, {"X-Api-Key": "hr_zoo"}
LATER = {"Prefer": "respond-async"}


def detail(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    text: str = response.json()["detail"]
    return text


@in_virtual_time
async def test_without_a_key_nothing_but_the_servers_health_is_told() -> None:
    async with serving(policy=GUARDED) as served:
        for path in ("/v2", "/v2/health/live", "/v2/health/ready"):
            assert (await served.client.get(path)).status_code == 200
        for path in ("/v2/models", "/v2/models/m", "/v2/models/none", "/v2/models/m/stats", "/v2/policy"):
            assert "an API key is needed" in detail(await served.client.get(path), 401), path
        for path in ("m", "o", "none", "m/versions/none"):
            response = await served.infer(3.0, path=path)
            assert "an API key is needed" in detail(response, 401)
            assert response.headers["www-authenticate"].startswith("Bearer")
        for call in (served.client.get, served.client.delete):
            assert detail(await call("/v2/requests/m.bulk.0"), 401)
        assert not served.replica.calls


@in_virtual_time
async def test_a_key_opens_the_models_of_its_tenant_and_no_others() -> None:
    async with serving(policy=GUARDED) as served:
        assert (await served.infer(3.0, headers=ACME)).status_code == 200
        assert (await served.infer(3.0, path="o", headers=ZOO)).status_code == 200
        said = detail(await served.infer(3.0, path="o", headers=ACME), 403)
        assert said == "tenant 'acme' may not use model 'o'"
        assert detail(await served.client.get("/v2/models/o", headers=ACME), 403)
        # Whether there is such a model is not for this tenant to know.
        assert detail(await served.infer(3.0, path="none", headers=ACME), 403) == said.replace(
            "'o'", "'none'"
        )
        assert detail(await served.infer(3.0, path="none", headers=ZOO), 404)
        assert detail(await served.infer(3.0, headers={**ACME, "Tenant": "zoo"}), 403)
        assert "not known" in detail(await served.infer(3.0, headers={"X-Api-Key": "hr_acm"}), 401)
        for headers, known in ((ACME, ["m"]), (ZOO, ["m", "o"])):
            listed = (await served.client.get("/v2/models", headers=headers)).json()["models"]
            assert [model["name"] for model in listed] == known


@in_virtual_time
async def test_anothers_request_is_as_unknown_as_one_that_never_was() -> None:
    async with serving(policy=GUARDED) as served:
        queued = await served.infer(3.0, budget_ms=60_000, headers={**ACME, **LATER})
        where = queued.headers["location"]
        assert queued.status_code == 202
        theirs = detail(await served.client.get(where, headers=ZOO), 404)
        never = detail(await served.client.get(where[:-1] + "?", headers=ZOO), 404)
        own = where.rsplit("/", 1)[1]
        assert theirs.replace(own, "ID") == never.replace(own[:-1], "ID")
        assert detail(await served.client.delete(where, headers=ZOO), 404)
        assert (await served.client.get(where, headers=ACME)).status_code == 202
        assert await served.work() == 1  # the other tenant's DELETE has cancelled nothing
        done = await served.client.get(where, headers=ACME)
        assert done.json()["outputs"][0]["data"] == [6.0]
        assert detail(await served.client.get(where, headers=ZOO), 404)


@in_virtual_time
async def test_one_idempotency_key_is_two_requests_when_two_tenants_use_it() -> None:
    async with serving(policy=GUARDED) as served:
        about = {**LATER, "Idempotency-Key": "same"}
        answers = [
            await served.infer(value, budget_ms=60_000, headers={**who, **about})
            for who, value in ((ACME, 1.0), (ZOO, 2.0), (ACME, 1.0))
        ]
        places = [answer.headers["location"] for answer in answers]
        assert places[0] == places[2] != places[1]


LIMITED = POLICY + "tenants: {slow: {rate: 2/s}, rows: {row_rate: 4/s}, few: {in_flight: 1}, free: {}}\n"


def of(tenant: str, **more: str) -> dict[str, str]:
    return {"Tenant": tenant, **more}


async def statuses(served: Served, tenant: str, *rows: int) -> list[int]:
    answers = [await served.infer(*[1.0] * n, headers=of(tenant)) for n in rows]
    return [answer.status_code for answer in answers]


@in_virtual_time
async def test_who_is_over_its_rate_is_told_when_to_come_back_and_then_is_let_in() -> None:
    async with serving(policy=LIMITED) as served:
        assert await statuses(served, "slow", 1, 1) == [200, 200]
        refused = await served.infer(1.0, headers=of("slow"))
        assert "tenant 'slow' is over its 2 requests/s" in detail(refused, 429)
        wait_s = int(refused.headers["retry-after"])
        assert 1 <= wait_s <= 2
        assert await statuses(served, "free", 1, 1, 1) == [200, 200, 200]
        assert len(served.replica.calls) == 5
        assert served.recorder.tenants["slow", "over quota"] == 1
        await asyncio.sleep(wait_s)
        assert await statuses(served, "slow", 1) == [200]


@in_virtual_time
async def test_rows_are_counted_apart_from_requests() -> None:
    async with serving(policy=LIMITED) as served:
        assert await statuses(served, "rows", 2, 2, 1) == [200, 200, 429]
        refused = await served.infer(1.0, headers=of("rows"))
        assert "over its 4 rows/s" in detail(refused, 429) and refused.headers["retry-after"] == "1"
        await asyncio.sleep(1)
        assert await statuses(served, "rows", 1) == [200]


@in_virtual_time
async def test_requests_in_flight_are_bounded_and_freed_however_they_end() -> None:
    async with serving(policy=LIMITED) as served:
        first = asyncio.create_task(served.infer(1.0, headers=of("few")))
        await asyncio.sleep(0.001)
        refused = await served.infer(2.0, headers=of("few"))
        assert "in flight" in detail(refused, 429) and refused.headers["retry-after"] == "1"
        assert (await first).status_code == 200
        # One that fails, and one whose caller leaves, give their place back too.
        assert detail(await served.client.post("/v2/models/m/infer", content=b"{", headers=of("few")), 400)
        left = asyncio.create_task(served.infer(1.0, headers=of("few")))
        await asyncio.sleep(0.001)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        assert await statuses(served, "few", 1, 1) == [200, 200]


@in_virtual_time
async def test_a_poll_that_waits_has_a_place_in_flight_and_one_without_a_place_does_not_wait() -> None:
    async with serving(policy=LIMITED) as served:
        queued = await served.infer(1.0, budget_ms=60_000, headers=of("few", **LATER))
        where = f"{queued.headers['location']}?wait=60"
        waiting = asyncio.create_task(served.client.get(where, headers=of("few")))
        await settled()
        assert "in flight" in detail(await served.infer(2.0, headers=of("few")), 429)
        began = now_ms()
        replies = await asyncio.gather(*(served.client.get(where, headers=of("few")) for _ in range(50)))
        assert now_ms() == began and not waiting.done()  # none of them is held
        assert {reply.status_code for reply in replies} == {202}
        for path in ("/v2/models", "/v2/models/m/stats", "/v2/policy", "/openapi.json"):
            refused = await served.client.get(path, headers=of("few"))
            assert "in flight" in detail(refused, 429) and refused.headers["retry-after"] == "1", path
        refused = await served.client.delete(queued.headers["location"], headers=of("few"))
        assert "in flight" in detail(refused, 429)
        for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/m/ready", "/v2/models/m"):
            assert (await served.client.get(path, headers=of("few"))).status_code == 200
        assert await served.work() == 1  # the refused DELETE has cancelled nothing
        assert (await waiting).json()["outputs"][0]["data"] == [2.0]
        assert (await served.client.get("/v2/models", headers=of("few"))).status_code == 200


@in_virtual_time
async def test_whatever_a_tenant_asks_counts_for_its_rate() -> None:
    async with serving(policy=LIMITED) as served:
        for method, path in (
            ("GET", "/v2/models"),
            ("GET", "/v2/models/m/stats"),
            ("GET", "/openapi.json"),
            ("GET", "/v2/requests/m.bulk.0"),
            ("DELETE", "/v2/requests/m.bulk.0"),
        ):
            await asyncio.sleep(60)
            replies = [await served.client.request(method, path, headers=of("slow")) for _ in range(3)]
            assert "over its 2 requests/s" in detail(replies[2], 429), path
            assert 429 not in [reply.status_code for reply in replies[:2]]
            assert (await served.client.get("/v2/health/ready", headers=of("slow"))).status_code == 200


@in_virtual_time
async def test_what_a_client_must_know_before_its_first_request_costs_nothing() -> None:
    async with serving(policy=LIMITED) as served:
        for path in ("/v2/models/m", "/v2/models/m/versions/v", "/v2/models/m/ready"):
            for _ in range(5):
                assert (await served.client.get(path, headers=of("slow"))).status_code == 200
        for method in ("ModelMetadata", "ModelReady"):
            for _ in range(5):
                context = Context([("tenant", "slow")])
                asked = RawMessage(message(f"{method}Request")(name="m").SerializeToString())
                await door(served).call(method, asked, context)
                assert context.code is None
        assert await statuses(served, "slow", 1, 1, 1) == [200, 200, 429]


@in_virtual_time
async def test_rows_that_are_refused_cost_nothing() -> None:
    async with serving(policy=LIMITED) as served:
        too_soon = await served.infer(*[1.0] * 4, budget_ms=1, headers=of("rows"))
        assert too_soon.status_code == 429 and too_soon.json()["kind"] == "miss"
        running = [asyncio.create_task(served.infer(*[1.0] * 8, budget_ms=20_000)) for _ in range(6)]
        await settled()
        full = await served.infer(*[1.0] * 4, budget_ms=20_000, headers=of("rows"))
        assert full.status_code == 429 and full.json()["kind"] == "full"
        await asyncio.gather(*running)
        assert await statuses(served, "rows", 4, 1) == [200, 429]
        await asyncio.sleep(1)
        keyed = {**LATER, "Idempotency-Key": "k"}
        first = await served.infer(1.0, 2.0, budget_ms=60_000, headers=of("rows", **keyed))
        assert first.status_code == 202
        conflict = await served.infer(1.0, budget_ms=60_000, headers=of("rows", **keyed))
        assert conflict.status_code == 409
        assert await statuses(served, "rows", 2) == [200]  # all that is left of the four


@in_virtual_time
async def test_a_refusal_costs_nothing_of_the_body() -> None:
    """Over its rate, a tenant's body is not even looked at."""
    async with serving(policy=LIMITED) as served:
        await statuses(served, "slow", 1, 1)
        answer = await served.client.post("/v2/models/m/infer", content=b"not JSON", headers=of("slow"))
        assert "requests/s" in detail(answer, 429)


@in_virtual_time
async def test_a_header_that_names_no_tenant_is_403() -> None:
    async with serving(policy=LIMITED) as served:
        assert "no tenant of the name" in detail(await served.infer(1.0, headers=of("stranger")), 403)
        assert (await served.infer(1.0)).status_code == 200


@pytest.mark.parametrize(
    ("when", "headers", "matches"),
    [
        ("{tenant: free}", {"Tenant": "free"}, True),
        ("{tenant: free}", {}, False),
        ("{header: {X-Tier: gold}}", {"x-tier": "gold"}, True),
        ("{header: {X-Tier: gold}}", {"x-tier": "silver"}, False),
        ("{rows: '<= 2'}", {}, True),
        ("{rows: '> 2'}", {}, False),
        ("{time: '00:00-24:00'}", {}, True),
    ],
)
def test_a_condition_reaches_from_the_wire_to_the_route(
    when: str, headers: dict[str, str], matches: bool
) -> None:
    text = LIMITED.replace("routes:\n", f"routes:\n  - {{name: asked, when: {when}, to: online}}\n")

    @in_virtual_time
    async def check() -> None:
        async with serving(policy=text) as served:
            response = await served.infer(3.0, 4.0, headers=headers)
            assert response.headers["route"] == ("asked" if matches else "fast")

    check()


@in_virtual_time
async def test_a_parameter_reaches_from_the_body_to_the_route() -> None:
    route = "  - {name: asked, when: {parameter: {explain: true}}, to: online}\n"
    async with serving(policy=POLICY.replace("routes:\n", "routes:\n" + route)) as served:
        for value, taken in ((True, "asked"), (1, "fast"), ("true", "fast")):
            tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [3]}
            body = {"inputs": [tensor], "parameters": {"explain": value, "latency_budget_ms": 400}}
            response = await served.client.post("/v2/models/m/infer", json=body)
            assert response.headers["route"] == taken
