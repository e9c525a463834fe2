"""Watches a bundled queue server and starts it again whenever it dies, on the same folder and port.

It has a thread of its own, because the kernel ends the server when the thread that started it ends
(`workers.queue.embedded`), and the main thread is busy elsewhere, deploying for example.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from workers.queue.embedded import EmbeddedServer, EmbeddedServerError

#: A server that has lived for so long is started again at once, however often it died before.
STEADY_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 5.0
_LINES_SHOWN = 5
#: At the end its last message may still be on its way to a terminal that does not read.
_LAST_MESSAGE_S = 5.0


def pause_s(failures: int) -> float:
    """How long to wait before the next start, when so many deaths and failed starts came shortly before."""
    return 0.0 if failures == 0 else min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(failures - 1, 10))


@contextmanager
def supervised(server: EmbeddedServer, say: Callable[[str], None]) -> Iterator[None]:
    """Start the server again whenever it dies, and ``say`` so, until the end; the server is then stopped."""
    watcher = threading.Thread(target=_watch, args=(server, say), name="queue-server-supervisor", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        server.stop()
        watcher.join(_LAST_MESSAGE_S)


def _watch(server: EmbeddedServer, say: Callable[[str], None]) -> None:
    failures, started = 0, time.monotonic()
    while True:
        code = server.wait_until_it_ends()
        if server.wait_until_stopped(0):
            return
        last = "\n".join(server.log_tail().splitlines()[-_LINES_SHOWN:])
        about = "requests for the queue get 503 until it is back; its log ends"
        _say(say, f"the queue server {_how_it_ended(code)}: {about}:\n{last}")
        if time.monotonic() - started >= STEADY_S:
            failures = 0
        while not _start_again(server, say, failures):
            if server.wait_until_stopped(0):
                return
            failures += 1
        failures, started = failures + 1, time.monotonic()


def _start_again(server: EmbeddedServer, say: Callable[[str], None], failures: int) -> bool:
    """One attempt after the pause that is due. False if it failed or the server is to stop."""
    if server.wait_until_stopped(pause_s(failures)):
        return False
    begun = time.monotonic()
    try:
        if not server.start_again():
            return False
    except EmbeddedServerError as error:
        _say(
            say, f"the queue server cannot be started again, next try in {pause_s(failures + 1):g} s: {error}"
        )
        return False
    took_s = time.monotonic() - begun
    _say(say, f"the queue server runs again on port {server.port} with every accepted job, in {took_s:.1f} s")
    return True


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended by itself with exit code {code}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def _say(say: Callable[[str], None], text: str) -> None:
    # The server dies with this thread: a closed terminal must not end it.
    with suppress(Exception):
        say(text)
