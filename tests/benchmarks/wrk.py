"""`wrk`, the HTTP load generator from Debian's packages: the load must not be what limits the server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_UNITS = {"us": 0.001, "ms": 1.0, "s": 1_000.0, "m": 60_000.0}


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of wrk measured."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int


def require() -> str:
    """The path of wrk, or an exit that says how to get it."""
    path = shutil.which("wrk")
    if path is None:
        sys.exit("this benchmark needs the load generator wrk: apt-get install wrk")
    return path


def script(path: Path, body: bytes, headers: dict[str, str]) -> Path:
    """A wrk script that posts ``body``; the body lies beside it, because it is binary."""
    data = path.with_suffix(".bin")
    data.write_bytes(body)
    lines = [
        f'local f = io.open("{data}", "rb")',
        'wrk.body = f:read("*a")',
        "f:close()",
        'wrk.method = "POST"',
    ]
    lines += [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def run(url: str, connections: int, seconds: float, lua: Path) -> Load:
    """Load ``url`` for a while on one thread."""
    command = [require(), "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "-s", str(lua), url]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    errors = sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", text))
    socket = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    errors += sum(map(int, socket.groups())) if socket else 0
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert rate, text
    return Load(float(rate[1]), _percentile(text, "50%"), _percentile(text, "99%"), errors)


def _percentile(text: str, name: str) -> float:
    found = re.search(rf"{re.escape(name)}\s+([\d.]+)(us|ms|s|m)\b", text)
    assert found, text
    return float(found[1]) * _UNITS[found[2]]
