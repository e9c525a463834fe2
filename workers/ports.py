"""Ports that stay free until the process that they are meant for opens them."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection
from contextlib import suppress

# Below the range that Linux draws from for everybody (32768 and up): a port that `bind` to port 0 tells
# may be given to another connection, one of Ray's many for example, before its own process opens it.
_FIRST, _SPAN = 12_000, 20_000
#: What this process was given already, and may not have opened yet.
_given: set[int] = set()


def check_port(host: str, port: int) -> None:
    """Raise OSError where something listens already, on ``host`` or for it.

    As servers do: connections of a predecessor that linger are no hindrance.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def free_port() -> int:
    """A port that nothing listens on now, on any address; never the same twice in one process.

    Raises OSError where none is found.
    """
    return free_ports(1)


def free_ports(count: int, but: Collection[int] = ()) -> int:
    """The first of ``count`` ports in a row, as `free_port`, none of them in ``but``; of a long row the ends
    and the middle are tried.

    Rows begin at multiples of ``count``, in the upper half of the range, single ports in the lower, so that
    two rows of a length never overlap and a single port lies in none.
    """
    half = _SPAN // 2
    first = _FIRST + (half if count > 1 else 0)
    for _ in range(1_000):
        start = first + random.SystemRandom().randrange(0, half - count + 1, count)
        if start in _given or any(start <= port < start + count for port in but):
            continue
        with suppress(OSError):
            for port in {start, start + count // 2, start + count - 1}:
                check_port("0.0.0.0", port)
            _given.add(start)
            return start
    raise OSError(f"no {count} free ports in a row between {first} and {first + half}")
