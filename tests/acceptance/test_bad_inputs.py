"""Each of the bad requests gets its status and one sentence, in memory and through a real server."""

from __future__ import annotations

import httpx
import pytest

from tests.acceptance.conftest import Served
from tests.support import served as memory
from tests.support.bad_inputs import TABLE, Bad, Target, check, the_headers

IN_MEMORY = Target("m", "x", (1,), rows=16, body_bytes=64 << 10)
LIVE = Target("digits", "image", (1, 8, 8), rows=1_000, body_bytes=1 << 20)
NAMES = [bad.what for bad in TABLE]


def test_the_table_is_as_long_as_it_should_be_and_says_nothing_twice() -> None:
    assert len(TABLE) >= 40
    assert len(set(NAMES)) == len(NAMES)
    assert sum(bad.passes_proxy for bad in TABLE) >= 40


@pytest.mark.parametrize("bad", TABLE, ids=NAMES)
async def test_a_bad_request_is_told_in_memory(bad: Bad) -> None:
    body = bad.body(IN_MEMORY)
    async with memory.serving() as served:
        reply = await served.client.request(
            bad.method, bad.path.format(model="m"), content=body, headers=the_headers(bad, body)
        )
        check(bad, reply.status_code, reply.headers, reply.content)
        assert served.replica.calls == []


@pytest.mark.parametrize("bad", [bad for bad in TABLE if bad.passes_proxy], ids=lambda bad: bad.what)
def test_a_bad_request_is_told_by_a_real_server(bad: Bad, served: Served) -> None:
    body = bad.body(LIVE)
    path = bad.path.format(model="digits")
    reply = httpx.request(bad.method, served.url + path, content=body, headers=the_headers(bad, body))
    check(bad, reply.status_code, reply.headers, reply.content)
