"""A queue server that is stopped or dead, and a service that has online replicas: real server, real time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.served import serving
from tests.support.virtual_time import now_ms
from tests.unit.service.test_queued import AUTO, LONG
from workers.queue.embedded import EmbeddedServer
from workers.queue.redis.queue import RedisQueue


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
async def test_what_may_go_either_way_is_answered_online_within_seconds(
    how: signal.Signals, tmp_path: Path
) -> None:
    with EmbeddedServer.start(tmp_path) as server:
        queue = RedisQueue.open(server.url, "m")
        async with serving(policy=AUTO) as served:
            model = served.service.model("m")
            model.queue = queue
            model.stats, model.stats_at_ms = await queue.stats(), now_ms()
            later = await served.infer(1.0, budget_ms=LONG, headers={"prefer": "respond-async"})
            assert later.status_code == 202
            os.kill(server.pid, how)
            try:
                began = time.monotonic()
                answers = [await served.infer(2.0, budget_ms=LONG) for _ in range(3)]
                took_s = time.monotonic() - began
            finally:
                if how is signal.SIGSTOP:
                    os.kill(server.pid, signal.SIGCONT)
            assert [(a.status_code, a.headers["path"]) for a in answers] == [(200, "online")] * 3
            assert took_s < 5.0, "one of them tried for a second; the queue's own patience is 10"
            await queue.close()
