"""The HTTP face of queued work: held, handed back, asked for later, cancelled, and what becomes of it."""

from __future__ import annotations

import asyncio
import re

import numpy as np
import pytest

from router.ingress.codec.protocol import HEADER_LENGTH
from tests.support.served import serving
from tests.support.virtual_time import in_virtual_time, now_ms, settled
from tests.unit.ingress.harness import LONG, down, post, the_problem
from workers.queue.job import JobState
from workers.queue.settings import QueueSettings


@in_virtual_time
async def test_a_queued_request_is_answered_on_the_held_connection() -> None:
    async with serving() as served:
        task = post(served, 2.0, budget_ms=LONG)
        await settled()
        assert await served.work() == 1
        response = await task
        assert response.status_code == 200
        assert response.json()["outputs"][0]["data"] == [4.0]
        headers = response.headers
        assert (headers["path"], headers["route"], headers["variant"]) == ("batch", "bulk", "v")
        assert headers["deadline-met"] == "true"
        assert served.recorder.requests["m", "bulk", "batch", "", "accepted"] == 1


@in_virtual_time
async def test_a_queued_request_that_takes_longer_is_handed_back_by_its_address() -> None:
    async with serving() as served:
        began = now_ms()
        response = await served.infer(2.0, budget_ms=LONG)
        assert now_ms() - began == pytest.approx(10_000, abs=1)
        assert response.status_code == 202
        body = response.json()
        assert (body["state"], body["route"]) == ("pending", "bulk")
        assert "preference-applied" not in response.headers
        address = response.headers["location"]
        assert address == f"/v2/requests/{body['id']}"

        poll = await served.client.get(address)
        assert (poll.status_code, poll.json()["state"]) == (202, "pending")
        waiting = asyncio.create_task(served.client.get(f"{address}?wait=20"))
        await settled()
        await served.work()
        answer = await waiting
        assert (answer.status_code, answer.json()["id"]) == (200, body["id"])
        assert answer.json()["outputs"][0]["data"] == [4.0]
        binary = await served.client.get(address, headers={"accept": "application/octet-stream"})
        assert binary.content[int(binary.headers[HEADER_LENGTH]) :] == np.float32(4.0).tobytes()


@in_virtual_time
async def test_the_outputs_of_a_queued_answer_are_chosen_when_it_is_asked_for() -> None:
    async with serving() as served:
        accepted = await served.infer(2.0, budget_ms=LONG, headers={"prefer": "respond-async"})
        address = accepted.headers["location"]
        early = await served.client.get(f"{address}?output=z")
        assert "query output='z' is no output; the model gives y" in the_problem(early, 400)
        await served.work()
        chosen = await served.client.get(f"{address}?output=y&output=y&binary=false&wait=1")
        assert [o["data"] for o in chosen.json()["outputs"]] == [[4.0]]
        binary = await served.client.get(f"{address}?output=%79&binary=true")
        assert binary.content[int(binary.headers[HEADER_LENGTH]) :] == np.float32(4.0).tobytes()
        accept = {"accept": "application/octet-stream"}
        text = await served.client.get(f"{address}?binary=False", headers=accept)
        assert text.json()["outputs"][0]["data"] == [4.0]  # the query is closer than the header
        late = await served.client.get(f"{address}?output=y&output=z")
        assert "'z' is no output" in the_problem(late, 400)


@in_virtual_time
async def test_a_caller_who_prefers_not_to_wait_is_not_made_to() -> None:
    async with serving() as served:
        watching = asyncio.create_task(served.service.queued.watch())
        await settled()
        began = now_ms()
        response = await served.infer(2.0, budget_ms=LONG, headers={"prefer": "respond-async"})
        assert (response.status_code, now_ms()) == (202, began)
        assert response.headers["preference-applied"] == "respond-async"
        assert float(response.headers["predicted-ms"]) > 0
        watching.cancel()


@in_virtual_time
async def test_under_a_prefix_the_address_of_a_request_keeps_it() -> None:
    async with serving(root_path="/ml") as served:
        response = await served.infer(2.0, budget_ms=LONG, headers={"prefer": "respond-async"})
        assert response.headers["location"].startswith("/ml/v2/requests/m.")
        poll = await served.client.get(f"http://test{response.headers['location']}")
        assert poll.status_code == 202


@pytest.mark.parametrize(
    ("fault", "retry", "status", "state", "said"),
    [
        ("ValueError: row 3 is bad", False, 422, "failed", "failed: ValueError: row 3 is bad"),
        (
            "RuntimeError: no\n  memory",
            True,
            500,
            "dead",
            "dead: failed 1 times; last: RuntimeError: no memory",
        ),
    ],
)
def test_a_job_that_failed_is_told_with_its_state_and_reason(
    fault: str, retry: bool, status: int, state: str, said: str
) -> None:
    @in_virtual_time
    async def play() -> None:
        async with serving() as served:
            task = post(served, 2.0, budget_ms=LONG)
            await settled()
            await served.work(fault, retry)
            response = await task
            assert said in the_problem(response, status)
            assert response.json()["state"] == state
            again = await served.client.get(f"/v2/requests/{response.json()['id']}")
            assert again.status_code == status

    play()


@in_virtual_time
async def test_a_job_whose_deadline_passed_in_the_queue_is_504() -> None:
    async with serving() as served:
        accepted = await served.infer(2.0, budget_ms=LONG, headers={"prefer": "respond-async"})
        await asyncio.sleep(61.0)
        assert await served.work() == 0
        response = await served.client.get(accepted.headers["location"])
        detail = the_problem(response, 504)
        assert re.search(r"^request m\.\w+\.\w+ expired: ", detail)


@in_virtual_time
async def test_a_cancelled_job_is_never_run_and_is_410() -> None:
    async with serving() as served:
        accepted = await served.infer(2.0, budget_ms=LONG, headers={"prefer": "respond-async"})
        address = accepted.headers["location"]
        for _ in range(2):
            cancelled = await served.client.delete(address)
            assert cancelled.json() == {"id": accepted.json()["id"], "state": "cancelled"}
        assert await served.work() == 0
        assert "cancelled" in the_problem(await served.client.get(address), 410)


@in_virtual_time
async def test_an_idempotency_key_makes_a_retry_the_same_request_and_other_content_a_conflict() -> None:
    async with serving() as served:
        about = {"prefer": "respond-async", "idempotency-key": "k1"}
        first = await served.infer(2.0, budget_ms=LONG, headers=about)
        # A retry has less of its budget left.
        second = await served.infer(2.0, budget_ms=LONG - 10_000, headers=about)
        assert first.json()["id"] == second.json()["id"]
        assert (await served.queue.stats()).jobs == 1
        other = await served.infer(5.0, budget_ms=LONG, headers=about)
        assert first.json()["id"] in the_problem(other, 409)


@pytest.mark.parametrize("key", [None, "k1"])
def test_a_caller_who_hangs_up_cancels_what_only_he_knew_of(key: str | None) -> None:
    @in_virtual_time
    async def play() -> None:
        async with serving() as served:
            about = {} if key is None else {"idempotency-key": key}
            task = post(served, 2.0, budget_ms=LONG, headers=about)
            await settled()
            (waiting,) = await served.queue.peek(1)
            task.cancel()
            await settled()
            status = await served.queue.state(waiting.id)
            assert status is not None
            assert status.state is (JobState.CANCELLED if key is None else JobState.PENDING)

    play()


@in_virtual_time
async def test_an_online_caller_who_hangs_up_is_counted_as_one_who_left() -> None:
    async with serving() as served:
        task = post(served, 2.0)
        await settled()
        task.cancel()
        await settled()
        assert served.recorder.requests["m", "fast", "online", "v", "left"] == 1
        assert not served.recorder.deadlines


@in_virtual_time
async def test_a_full_queue_is_429_with_a_time_to_come_back() -> None:
    async with serving(settings=QueueSettings(max_jobs=1)) as served:
        about = {"prefer": "respond-async"}
        assert (await served.infer(2.0, budget_ms=LONG, headers=about)).status_code == 202
        refused = await served.infer(2.0, budget_ms=LONG, headers=about)
        assert the_problem(refused, 429) == "the queue is full (jobs)"
        assert int(refused.headers["retry-after"]) >= 1


@in_virtual_time
async def test_a_queue_that_is_down_is_503_for_batch_work_and_nothing_to_online_work() -> None:
    async with serving() as served:
        served.queue.submit = served.queue.state = served.queue.cancel = down  # type: ignore[method-assign]
        for response in (
            await served.infer(2.0, budget_ms=LONG),
            await served.client.get("/v2/requests/m.1"),
            await served.client.delete("/v2/requests/m.1"),
        ):
            assert "connection refused" in the_problem(response, 503)
            assert response.headers["retry-after"] == "1"
        assert (await served.infer(2.0)).status_code == 200


@in_virtual_time
async def test_a_queue_that_goes_down_while_a_request_is_held_hands_it_back_by_its_address() -> None:
    async with serving() as served:
        served.queue.wait = down  # type: ignore[method-assign]
        response = await served.infer(2.0, budget_ms=LONG)
        assert response.status_code == 202
        assert response.headers["location"].startswith("/v2/requests/m.")
