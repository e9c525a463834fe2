"""How many random cases a test tries: enough for every run, ten times as many under `make fuzz`."""

from __future__ import annotations

import os

FUZZ = os.environ.get("FUZZ") == "1"


def tries(count: int) -> int:
    return count * 10 if FUZZ else count
