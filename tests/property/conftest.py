"""The property tests' effort: hypothesis' own number of examples, or ten times that under `make fuzz`."""

from __future__ import annotations

from hypothesis import settings

from tests.support.effort import tries

settings.register_profile("here", max_examples=tries(100))
settings.load_profile("here")
