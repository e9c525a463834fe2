"""What goes wrong in a simulation, on request: a replica dies, is slow or stops, a queue is out of reach."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from router import units

_FAULT = re.compile(
    r"(?P<kind>kill|slow|stop|outage):(?P<model>[^.@:]+)\.(?P<side>online|batch|queue)(?:\.(?P<index>\d+))?"
    r"@(?P<at>[^+*]+)(?:\+(?P<lasts>[^*]+))?(?:\*(?P<factor>[\d.]+))?"
)
_FORMS = (
    "kill:MODEL.online.0@30s, slow:MODEL.batch.0@30s+10s*3, stop:MODEL.online.0@30s+2s "
    "or outage:MODEL.queue@1min+5s"
)


class FaultError(ValueError):
    """A fault that cannot be read; the message says what one looks like."""


@dataclass(frozen=True, slots=True)
class Fault:
    """``kill`` ends a replica or worker, ``slow`` makes one take ``factor`` times as long, ``outage`` makes
    a model's queue unreachable, ``stop`` makes a replica stand still; but for the first for ``lasts_ms``."""

    kind: Literal["kill", "slow", "stop", "outage"]
    model: str
    side: Literal["online", "batch", "queue"]
    index: int
    at_ms: float
    lasts_ms: float = 0.0
    factor: float = 1.0


def parse(text: str) -> Fault:
    """A fault as people write it. Raises `FaultError`."""
    match = _FAULT.fullmatch(text.strip())
    if not match or (match["kind"] == "outage") != (match["side"] == "queue"):
        raise FaultError(f"{text!r} is not a fault; write {_FORMS}")
    if match["kind"] == "stop" and match["side"] != "online":
        raise FaultError(f"{text!r}: only an online replica can stop; a worker that does loses its lease")
    if match["kind"] != "kill" and not match["lasts"]:
        raise FaultError(f"{text!r}: say for how long: {_FORMS}")
    try:
        at_ms = units.duration_ms(match["at"])
        lasts_ms = units.duration_ms(match["lasts"]) if match["lasts"] else 0.0
        factor = float(match["factor"] or (3.0 if match["kind"] == "slow" else 1.0))
    except ValueError as error:
        raise FaultError(f"{text!r}: {error}") from None
    if factor <= 0:
        raise FaultError(f"{text!r}: the factor must be above 0")
    kind, side = match["kind"], match["side"]
    return Fault(kind, match["model"], side, int(match["index"] or 0), at_ms, lasts_ms, factor)  # type: ignore[arg-type]
