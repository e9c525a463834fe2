"""One plain worker process of the chaos run: the same loop as the Serve replica's.

``python -m tests.chaos.worker QUEUE_URL FOLDER``
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from tests.chaos.parts import HUNG, SETTINGS, PoisonModel, loop_settings, open_logged
from workers.batch.loop import ModelHangs, WorkerLoop
from workers.queue.settings import settings_from


async def main(url: str, folder: Path) -> None:
    queue = open_logged(url, settings_from(SETTINGS), folder)
    loop = WorkerLoop(queue, PoisonModel(), "v", f"pid:{os.getpid()}", loop_settings())
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    running = asyncio.create_task(loop.run())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    await loop.stop()
    try:
        await running
    except ModelHangs:
        os._exit(HUNG)  # as a Serve replica ends: the thread that hangs would keep the process
    stopping.cancel()
    await queue.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
