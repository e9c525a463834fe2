"""Jobs as values: what is refused, what is the same content, and the lifecycle."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from workers.queue.job import (
    InvalidJob,
    JobDecodeError,
    NewJob,
    decode_leases,
    decode_status,
    encode_new,
)

JOB = NewJob("a", b"payload", 2, 500)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", ""),
        ("id", "two words"),
        ("id", "x" * 193),
        ("rows", 0),
        ("rows", 1.5),
        ("rows", True),
        ("budget_ms", 0),
        ("budget_ms", 1 << 43),
        ("max_attempts", 0),
        ("max_attempts", 101),
        ("tenant", "t" * 257),
        ("variant", "v" * 257),
        ("key", "k" * 257),
    ],
)
def test_a_job_that_cannot_be_queued_names_the_field(field: str, value: object) -> None:
    with pytest.raises(InvalidJob, match=field.split("_")[0]):
        replace(JOB, **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"payload": b"other"}, {"rows": 3}, {"variant": "int8"}])
def test_other_content_has_another_digest(change: dict[str, object]) -> None:
    assert replace(JOB, **change).digest() != JOB.digest()  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"id": "b"}, {"budget_ms": 9}, {"key": "k"}, {"tenant": "t"}])
def test_what_is_not_content_leaves_the_digest(change: dict[str, object]) -> None:
    assert replace(JOB, **change).digest() == JOB.digest()  # type: ignore[arg-type]


def test_payload_and_rows_cannot_be_confused_in_the_digest() -> None:
    assert NewJob("a", b"x\x001", 2, 1).digest() != NewJob("a", b"x", 12, 1).digest()


def test_payloads_never_print() -> None:
    assert "payload" not in repr(JOB)


def test_metadata_travels_as_plain_json() -> None:
    (row,) = orjson.loads(encode_new([replace(JOB, tenant="t", variant="v", key="k", trace="c")]))
    assert row == ["a", 2, 500, "t", "v", "k", 3, replace(JOB, variant="v").digest(), "c"]


@pytest.mark.parametrize("rows", [b"not json", b"[[1]]", b"[]"])
def test_a_broken_claim_answer_is_a_typed_error(rows: bytes) -> None:
    with pytest.raises(JobDecodeError):
        decode_leases(rows, [b"payload"])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"state": None, "deadline_ms": "1", "submitted_ms": "1", "rows": "1"},
        {"state": "done", "deadline_ms": "x", "submitted_ms": "1", "rows": "1"},
        {"state": "done", "deadline_ms": "1", "submitted_ms": "1", "rows": "1", "failures": "{"},
    ],
)
def test_a_broken_record_is_a_typed_error_that_names_the_job(fields: dict[str, str]) -> None:
    with pytest.raises(JobDecodeError, match="job a"):
        decode_status("a", fields)


@pytest.mark.parametrize(("finished", "met"), [("100", True), ("101", False), (None, None)])
def test_met_is_decided_by_the_deadline_inclusive(finished: str | None, met: bool | None) -> None:
    fields = {
        "state": "done",
        "deadline_ms": "100",
        "submitted_ms": "1",
        "rows": "1",
        "finished_ms": finished,
    }
    assert decode_status("a", fields).met is met
