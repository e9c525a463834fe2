"""One submitter process of the chaos run: bursts of jobs, each sent again until it is accepted.

``python -m tests.chaos.submitter QUEUE_URL FOLDER NAME SEED SECONDS``. Its log has every acceptance.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from pathlib import Path

from tests.chaos.parts import MODEL, POISON, SETTINGS, Log, make_job
from workers.queue.contract import Accepted, Full, QueueUnavailable
from workers.queue.redis.queue import RedisQueue
from workers.queue.settings import settings_from

POISON_SHARE = 0.01
TIGHT_SHARE = 0.05


async def main(url: str, folder: Path, name: str, seed: int, seconds: float) -> None:
    rng = random.Random(f"{seed}-{name}")
    queue = RedisQueue.open(url, MODEL, settings_from(SETTINGS), patience_s=2.0)
    log = Log(folder / f"submitter-{name}.log")
    until = time.monotonic() + seconds
    serial = 0
    while time.monotonic() < until:
        burst = []
        for _ in range(rng.choice((1, 1, 4, 30))):
            budget_ms = rng.randint(500, 3000) if rng.random() < TIGHT_SHARE else rng.randint(60_000, 600_000)
            kind, value = POISON if rng.random() < POISON_SHARE else "", serial % 1000
            burst.append((make_job(f"{name}-{serial}", kind or value, budget_ms), kind, value))
            serial += 1
        while burst:
            try:
                answers = await queue.submit([job for job, _, _ in burst], within_ms=2000)
            except QueueUnavailable:
                continue
            left = []
            for item, answer in zip(burst, answers, strict=True):
                if isinstance(answer, Accepted):
                    job, kind, value = item
                    log.write(id=job.id, deadline_ms=answer.deadline_ms, kind=kind, value=value)
                elif isinstance(answer, Full):
                    left.append(item)
                else:
                    raise AssertionError(f"a job's own id conflicts: {answer}")
            burst = left
            if left:
                await asyncio.sleep(0.1)
        await asyncio.sleep(rng.uniform(0.0, 0.08))
    await queue.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5])))
