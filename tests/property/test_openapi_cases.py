"""2,000 requests that schemathesis makes from the OpenAPI document, right and wrong: every answer is one that
the document describes, and none is a server's error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.support.effort import tries
from tests.support.live import live

CASES = tries(2_000)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
#: Any refusal is right for a wrong request, whichever of its faults is found first.
CONFIG = schemathesis.Config.from_dict(
    {"checks": {"negative_data_rejection": {"expected-statuses": ["4xx"]}}}
)
#: Operations whose parameters and bodies have much to vary; the others have few different requests.
WEIGHTS = {"infer": 10, "variant_infer": 6, "result": 4, "cancel": 2}
#: Those with anything to get wrong; elsewhere every string fits.
REFUSING = frozenset({"infer", "variant_infer", "result"})


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with live() as url:
        yield url


def with_the_example(case: Case, operation: Any) -> None:
    """Data that fits its shape is rarely guessed: the document's own, under the headers that were made."""
    content = operation.definition.raw.get("requestBody", {}).get("content", {}).get("application/json")
    if content is not None:
        case.body, case.media_type = content["examples"]["row"]["value"], "application/json"
        for name in ("Content-Encoding", "Inference-Header-Content-Length"):  # they are about another body
            case.headers.pop(name, None)
        if "Prefer" in case.headers:  # a made-up preference is ignored
            case.headers["Prefer"] = "respond-async"


def play(
    operation: Any, mode: GenerationMode, examples: int, number: int, session: Any, kept: list[int]
) -> None:
    """Send ``examples`` requests of one operation and check each answer; ``kept`` gets their statuses."""

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Case) -> None:
        if mode is GenerationMode.POSITIVE and len(kept) % 2:
            with_the_example(case, operation)
        response = case.call(session=session)
        case.validate_response(response, checks=CHECKS)
        kept.append(response.status_code)

    one()


def test_every_answer_is_one_that_the_document_describes(address: str) -> None:
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json", config=CONFIG)
    operations = [found.ok() for found in schema.get_all_operations()]
    statuses: list[int] = []
    with requests.Session() as session:
        for number in range(tries(20)):
            for operation in operations:
                kind = operation.definition.raw["operationId"].partition(".")[0]
                for mode in GenerationMode.POSITIVE, GenerationMode.NEGATIVE:
                    if mode is GenerationMode.NEGATIVE and kind not in REFUSING:
                        continue
                    left = CASES - len(statuses)
                    if left > 0:
                        play(operation, mode, min(left, 6 * WEIGHTS.get(kind, 1)), number, session, statuses)
    assert len(statuses) == CASES
    # It got through to the model, to the queue and to what refuses.
    counted = Counter(statuses)
    assert all(counted[status] >= 20 for status in (200, 202, 400, 404)), counted
