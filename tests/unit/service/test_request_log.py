"""The log of requests: what is written, how much of it, and what never is."""

from __future__ import annotations

import json
from pathlib import Path

import httpx

from router.ingress.http.application import Ingress
from router.service.request_log import MAX_FAILURES_PER_S, LogFile, RequestLog
from tests.support.served import serving
from tests.support.virtual_time import in_virtual_time

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_share_of_what_went_well_is_written_evenly() -> None:
    log = RequestLog(lambda: 0.25, lambda line: None)
    assert [log.wants(well=True) for _ in range(8)] == [False, False, False, True] * 2


def test_failures_are_written_up_to_a_rate_and_the_rest_is_counted() -> None:
    at_s = [10.0]
    lines: list[str] = []
    log = RequestLog(lambda: 0.0, lines.append, now=lambda: at_s[0])
    wanted = [log.wants(well=False) for _ in range(MAX_FAILURES_PER_S + 30)]
    assert sum(wanted) == MAX_FAILURES_PER_S
    at_s[0] = 11.0
    assert log.wants(well=False)
    log.write(outcome="failed", tenant=None)
    assert json.loads(lines[0]) == {
        "time": "1970-01-01T00:00:11.000+00:00",
        "outcome": "failed",
        "left_out": 30,
    }


def test_lines_reach_the_file_when_it_is_closed(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "log", "requests.jsonl")
    file.write('{"a":1}')
    file.write('{"a":2}')
    file.close()
    assert file.path.read_text() == '{"a":1}\n{"a":2}\n'


class Logged:
    """An ingress with its log of everything in a list."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def ingress(self, ingress: Ingress) -> None:
        ingress._calls._log = RequestLog(lambda: 1.0, self.lines.append)

    @property
    def last(self) -> dict[str, object]:
        told: dict[str, object] = json.loads(self.lines[-1])
        return told


@in_virtual_time
async def test_an_answer_a_promise_and_a_refusal_are_told_without_payload_or_key() -> None:
    logged = Logged()
    async with serving() as served:
        logged.ingress(served.ingress)
        about = {"traceparent": TRACE, "x-request-id": "r-1", "authorization": "Bearer hr_secret"}
        answer = await served.infer(1234.5, headers=about)
        assert answer.headers["traceparent"] == TRACE
        told = logged.last
        assert told["outcome"] == "answered"
        assert (told["status"], told["route"], told["variant"], told["path"]) == (200, "fast", "v", "online")
        assert told["trace_id"] == TRACE[3:35]
        assert told["request_id"] == "r-1"
        assert {"budget_ms", "predicted_ms", "queued_ms", "total_ms", "time"} <= told.keys()

        queued = await served.infer(1234.5, budget_ms=60_000, headers={"prefer": "respond-async", **about})
        assert logged.last["outcome"] == "queued"
        assert logged.last["request_id"] == queued.json()["id"]
        await served.work()
        later = await served.client.get(queued.headers["location"])
        assert later.headers["traceparent"] == TRACE, "the trace is kept with the job"

        refused: httpx.Response = await served.infer(*[1234.5] * 17, headers=about)
        assert refused.status_code == 413
        assert (logged.last["outcome"], logged.last["status"]) == ("refused", 413)
        assert "17 rows" in str(logged.last["reason"])
    text = "\n".join(logged.lines)
    assert "1234.5" not in text
    assert "secret" not in text


@in_virtual_time
async def test_a_malformed_trace_is_left_out() -> None:
    async with serving() as served:
        for bad in ("nonsense", "ff" + TRACE[2:], TRACE.replace("b7ad6b7169203331", "0" * 16)):
            answer = await served.infer(1.0, headers={"traceparent": bad})
            assert answer.status_code == 200
            assert "traceparent" not in answer.headers
