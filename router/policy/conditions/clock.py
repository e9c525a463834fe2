"""The condition on the time of day, on the clocks of a time zone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cached_property, lru_cache
from typing import Annotated, Any, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import WithJsonSchema, model_validator

from router.policy.conditions.condition import Known, RouteCondition, SampleRequest, Samples
from router.policy.terms.route_facts import RouteFacts

_DAY = re.compile(r"\s*([0-9]{1,2}):([0-9]{2})\s*-\s*([0-9]{1,2}):([0-9]{2})(?:\s+([A-Za-z0-9_+/-]+))?\s*")
_CLOCK = r"[0-9]{1,2}:[0-9]{2}"
_PATTERN = rf"^\s*{_CLOCK}\s*-\s*{_CLOCK}(\s+[A-Za-z0-9_+/-]+)?\s*$"
TimeText = Annotated[str, WithJsonSchema({"type": "string", "pattern": _PATTERN})]


@lru_cache(maxsize=64)
def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)


class TimeCondition(RouteCondition[str]):
    """The time of day, from the first minute up to the second: ``22:00-06:00`` (UTC), or
    ``08:00-18:00 Europe/Vienna``."""

    NEEDS, EXAMPLE = "epoch_s", '"08:00-18:00 Europe/Vienna"'
    root: TimeText

    @model_validator(mode="before")
    @classmethod
    def _check(cls, value: Any) -> Any:
        cls._span(value)
        return value

    @classmethod
    def _span(cls, value: Any) -> tuple[int, int, str]:
        """First minute of the day, minute after the last, and the zone's name."""
        match = _DAY.fullmatch(value) if isinstance(value, str) else None
        if not match:
            raise ValueError(
                f"{value!r} is not a time of day; write '22:00-06:00' or '08:00-18:00 Europe/Vienna'"
            )
        begin, end = int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])
        if int(match[2]) > 59 or int(match[4]) > 59 or begin >= 1440 or end > 1440:
            raise ValueError(f"{value!r} is not a time of day; hours go from 00:00 to 24:00")
        if begin == end:
            raise ValueError(f"{value!r} is empty; leave the condition out for the whole day")
        zone = match[5] or "UTC"
        try:
            _zone(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(
                f"{zone!r} is not a time zone that this machine knows; write UTC or Europe/Vienna"
            ) from None
        return begin, end, zone

    @cached_property
    def span(self) -> tuple[int, int, str]:
        return self._span(self.root)

    def holds(self, facts: RouteFacts) -> bool:
        return self.includes(facts.epoch_s)

    def includes(self, epoch_s: float) -> bool:
        begin, end, zone = self.span
        at = datetime.fromtimestamp(epoch_s, _zone(zone))
        minute = at.hour * 60 + at.minute
        return begin <= minute < end if begin < end else minute >= begin or minute < end

    def mismatches(self, facts: RouteFacts) -> Iterator[str]:
        if not self.holds(facts):
            zone = self.span[2]
            at = datetime.fromtimestamp(facts.epoch_s, _zone(zone))
            yield f"time of day is {at:%H:%M} {zone}, not {self.root.strip()}"

    def by_quantity(self) -> Iterator[tuple[str, Self]]:
        yield "time", self

    @classmethod
    def samples(cls, conditions: Sequence[Self], known: Known) -> Samples:
        """The moments of one winter's and one summer's day at which a condition begins or ends to hold."""
        samples = []
        for month in (1, 7):
            midnight = datetime(2026, month, 15, tzinfo=UTC)
            edges = {midnight}
            for condition in conditions:
                for minute in range(24 * 60):
                    at = midnight + timedelta(minutes=minute)
                    before = at - timedelta(minutes=1)
                    if condition.includes(at.timestamp()) != condition.includes(before.timestamp()):
                        edges.add(at)
            samples += [SampleRequest({"epoch_s": at.timestamp()}, f"{at:%H:%M} UTC") for at in sorted(edges)]
        if conditions:
            yield "time", samples
