"""Free ports that stay free until the process that needs them opens them."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection
from contextlib import suppress

# Below the range from which Linux gives out ports (32768 and up): a port found by binding to port 0 may be
# given to another connection, one of Ray's many for example, before its own process opens it.
_FIRST, _SPAN = 12_000, 20_000
#: Ports that this process has taken and may not have opened yet.
_reserved: set[int] = set()


def check_port(host: str, port: int) -> None:
    """Raise OSError where something listens already, on ``host`` or for it.

    As servers do: lingering connections of a server that ended do not matter.
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


def free_ports(count: int, exclude: Collection[int] = ()) -> int:
    """The first of ``count`` ports in a row, as `free_port`, none of them in ``exclude``. Of a long row the
    ends and the middle are tried.

    Rows begin at multiples of ``count``, in the upper half of the range, single ports in the lower, so that
    two rows of a length never overlap and a single port lies in none.
    """
    half = _SPAN // 2
    first = _FIRST + (half if count > 1 else 0)
    for _ in range(1_000):
        start = first + random.SystemRandom().randrange(0, half - count + 1, count)
        if start in _reserved or any(start <= port < start + count for port in exclude):
            continue
        with suppress(OSError):
            for port in {start, start + count // 2, start + count - 1}:
                check_port("0.0.0.0", port)
            _reserved.add(start)
            return start
    raise OSError(f"no {count} free ports in a row between {first} and {first + half}")
