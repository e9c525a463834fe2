"""Both paths of one endpoint, through the SDK and through plain HTTP, on a real server with a real model."""

from __future__ import annotations

from collections import Counter

import httpx
import numpy as np
import orjson
import pytest

from optimizers.examples.digits import test_split as real_images
from router import Client
from router.sdk.errors import JobCancelled
from tests.acceptance.conftest import Served

IMAGES, LABELS = real_images()
INFER = "/v2/models/digits/infer"


def body(index: int = 0, rows: int = 1, **members: object) -> bytes:
    data = IMAGES[index : index + rows]
    entry = {"name": "image", "datatype": "FP32", "shape": list(data.shape), "data": data.ravel().tolist()}
    return orjson.dumps({"inputs": [entry], **members})


def test_interactive_requests_run_online_on_an_accurate_variant(client: Client) -> None:
    results = [client.infer("digits", IMAGES[i : i + 1], budget="2s") for i in range(50)]
    right = sum(int(r.outputs["label"][0] == LABELS[i]) for i, r in enumerate(results))
    assert right >= 47
    assert {r.path for r in results} == {"online"}
    assert {r.route for r in results} == {"interactive"}
    assert {r.variant for r in results} <= {"float32", "int8"}  # the tree is below the quality floor
    assert all(r.deadline_met and r.predicted_ms is not None for r in results)


def test_bulk_requests_go_through_the_queue_and_come_back_in_order(client: Client) -> None:
    results = list(client.map("digits", iter(IMAGES), "10min", rows_per_request=50))
    labels = np.array([int(r.outputs["label"].reshape(-1)[0]) for r in results])
    assert len(labels) == len(LABELS)
    assert (labels == LABELS).mean() > 0.96
    assert Counter(r.path for r in results) == {"batch": len(LABELS)}


def test_a_request_of_more_rows_than_a_batch_is_split_and_joined(client: Client) -> None:
    result = client.infer("digits", IMAGES[:200], budget="2s")
    assert result.path == "online"
    assert (result.outputs["label"] == LABELS[:200]).mean() > 0.95


def test_a_pinned_variant_is_the_one_that_runs(client: Client) -> None:
    for variant in ("float32", "int8", "tree"):
        result = client.infer("digits", IMAGES[:1], budget="31s", variant=variant)
        assert (result.variant, result.path) == (variant, "batch")
    online = client.infer("digits", IMAGES[:1], budget="2s", variant="tree")
    assert (online.variant, online.path) == ("tree", "online")


def test_plain_http_gets_the_route_in_headers_and_parameters(served: Served) -> None:
    reply = httpx.post(served.url + INFER, content=body(3, id="mine"), headers={"Latency-Budget-Ms": "2000"})
    assert reply.status_code == 200
    told = reply.json()
    assert told["id"] == "mine"
    assert told["outputs"][0]["data"] == [int(LABELS[3])]
    assert reply.headers["Route"] == told["parameters"]["route"] == "interactive"
    assert reply.headers["Variant"] == told["parameters"]["variant"] == told["model_version"]
    assert reply.headers["Deadline-Met"] == "true"
    assert float(reply.headers["Predicted-Ms"]) > 0


def test_the_budget_parameter_wins_over_the_header_and_tritons_timeout_counts_too(served: Served) -> None:
    parameter = httpx.post(
        served.url + INFER,
        content=body(parameters={"latency_budget_ms": 1500}),
        headers={"Latency-Budget-Ms": "60000"},
    )
    assert parameter.headers["Route"] == "interactive"
    timeout = httpx.post(served.url + INFER, content=body(parameters={"timeout": 60_000_000}))
    assert timeout.headers["Route"] == "bulk"


def test_respond_async_gives_202_and_a_location_that_ends_in_the_result(served: Served) -> None:
    accepted = httpx.post(
        served.url + INFER,
        content=body(5, rows=2),
        headers={"Latency-Budget-Ms": "60000", "Prefer": "respond-async"},
    )
    assert accepted.status_code == 202
    assert accepted.headers["Preference-Applied"] == "respond-async"
    done = httpx.get(served.url + accepted.headers["Location"], params={"wait": 20}, timeout=30)
    assert done.status_code == 200
    assert done.json()["outputs"][0]["data"] == LABELS[5:7].tolist()
    assert done.headers["Path"] == "batch"
    assert done.headers["Deadline-Met"] == "true"


def test_the_same_idempotency_key_answers_with_the_first_request(served: Served) -> None:
    headers = {"Latency-Budget-Ms": "60000", "Prefer": "respond-async", "Idempotency-Key": "once"}
    first = httpx.post(served.url + INFER, content=body(7), headers=headers)
    again = httpx.post(served.url + INFER, content=body(7), headers=headers)
    other = httpx.post(served.url + INFER, content=body(8), headers=headers)
    assert first.headers["Location"] == again.headers["Location"]
    assert other.status_code == 409


def test_a_cancelled_request_says_so(client: Client) -> None:
    # Ahead of it stands more work than the worker takes at once, so that it is still waiting.
    for _ in range(40):
        client.submit("digits", np.concatenate([IMAGES[:300]] * 3), budget="40s")
    job = client.submit("digits", IMAGES[:1], budget="1h")
    if job.cancel():
        with pytest.raises(JobCancelled):
            job.result()
        assert job.state() == "cancelled"
    else:
        assert job.result().outputs["label"][0] == LABELS[0]


def test_metadata_describes_model_and_variants(served: Served, client: Client) -> None:
    assert httpx.get(f"{served.url}/v2/health/live").json() == {"live": True}
    assert httpx.get(f"{served.url}/v2/health/ready").json()["ready"] is True
    assert "binary_tensor_data" in httpx.get(f"{served.url}/v2").json()["extensions"]
    model = client.model("digits")
    assert set(model.versions) == {"float32", "int8", "tree"}
    assert [(s.name, s.datatype, s.shape) for s in model.inputs] == [("image", "FP32", (-1, 1, 8, 8))]
    one = httpx.get(f"{served.url}/v2/models/digits/versions/int8").json()
    assert one["versions"] == ["int8"]
    assert httpx.get(f"{served.url}/v2/models/digits/versions/int8/ready").status_code == 200


def post(url: str, content: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.post(url, content=content, headers=headers or {})


def entry(datatype: str, shape: list[int]) -> bytes:
    return orjson.dumps(
        {"inputs": [{"name": "image", "datatype": datatype, "shape": shape, "data": [0] * 64}]}
    )


@pytest.mark.parametrize(
    ("content", "headers", "status", "says"),
    [
        (b"{", {}, 400, "not JSON"),
        (b"[]", {}, 400, "'inputs'"),
        (entry("FP32", [1, 64]), {}, 422, "shape"),
        (entry("INT64", [1, 1, 8, 8]), {}, 422, "FP32"),
        (body(), {"Latency-Budget-Ms": "-5"}, 400, "Latency-Budget-Ms"),
        (body(), {"Latency-Budget-Ms": "1e12"}, 400, "30 days"),
        (body(), {"Latency-Budget-Ms": "soon"}, 400, "not a number"),
        (body(parameters={"latency_budget_ms": "5"}), {}, 400, "latency_budget_ms"),
        (b"x" * (2 << 20), {}, 413, "limits.body"),
        (body(), {"Content-Encoding": "br"}, 415, "Content-Encoding"),
        (body(outputs=[{"name": "nothing"}]), {}, 400, "unknown output"),
    ],
)
def test_bad_input_gets_its_status_and_one_clear_sentence(
    served: Served, content: bytes, headers: dict[str, str], status: int, says: str
) -> None:
    reply = post(served.url + INFER, content, headers)
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert problem["error"] == problem["detail"]
    assert says in problem["detail"]
    assert "Traceback" not in reply.text


def test_unknown_model_variant_request_and_path_are_404(served: Served) -> None:
    for path in ("/v2/models/nobody", "/v2/models/digits/versions/int3", "/v2/nothing", "/"):
        assert httpx.get(served.url + path).status_code == 404
    assert httpx.get(f"{served.url}/v2/requests/digits.0000").status_code == 404
    assert post(f"{served.url}/v2/models/nobody/infer", body()).status_code == 404


def test_a_budget_that_no_variant_can_meet_is_refused_before_any_work(served: Served) -> None:
    reply = post(served.url + INFER, body(), {"Latency-Budget-Ms": "0.01"})
    assert reply.status_code == 429
    assert "predicted" in reply.json()["detail"]
