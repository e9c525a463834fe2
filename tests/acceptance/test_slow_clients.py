"""A thousand clients that send a byte now and then hold nobody up, and are ended."""

from __future__ import annotations

import asyncio

import numpy as np

from optimizers.examples.digits import test_split as real_images
from router import AsyncClient
from router.ingress.http.reading import BODY_WITHIN_S
from tests.acceptance.conftest import Served
from tests.support.slow_clients import slow_clients

IMAGES, LABELS = real_images()
COUNT = 1_000
INFER = "/v2/models/digits/infer"
#: Two seconds pass between looks, and the machine of a test is not the fastest.
ENDED_WITHIN_S = BODY_WITHIN_S + 20


async def test_others_are_answered_beside_a_thousand_slow_heads_and_bodies_which_end(served: Served) -> None:
    async with (
        AsyncClient(served.url) as client,
        slow_clients(served.url, INFER, COUNT // 2) as slow,
        slow_clients(served.url, INFER, COUNT // 2, in_head=True) as heads,
    ):
        await slow.wait_open(60)
        await heads.wait_open(60)
        ended_before = len(slow.after_s)
        calls = [client.infer("digits", IMAGES[i : i + 1], budget="2s") for i in range(50)]
        results = await asyncio.gather(*calls)
        right = sum(int(r.outputs["label"][0]) == LABELS[i] for i, r in enumerate(results))
        assert right >= 45
        assert all(r.deadline_met for r in results)
        assert ended_before < COUNT // 2
        await slow.wait_ended(ENDED_WITHIN_S)
        await heads.wait_ended(ENDED_WITHIN_S)
    assert set(heads.statuses) == {408}
    assert set(slow.statuses) == {408}
    assert np.percentile(slow.after_s, 1) >= BODY_WITHIN_S - 2
    assert max(slow.after_s) <= ENDED_WITHIN_S
