"""The id of a queued request."""

from __future__ import annotations

import pytest

from router.service.request_id import RequestId


def test_an_id_is_read_as_it_was_made_and_no_two_are_the_same() -> None:
    first, second = (RequestId.new("digits", "bulk") for _ in range(2))
    assert RequestId.parse(str(first)) == first != second
    assert (first.model, first.route, len(first.token)) == ("digits", "bulk", 24)


@pytest.mark.parametrize("text", ["", ".", "..", "none", "a.b", "a.b.c.d", "\u00e9.\x00.x" * 50])
def test_any_text_is_read(text: str) -> None:
    assert RequestId.parse(text).model == text.partition(".")[0]
