"""10,000 random and mutated bodies do no harm, nor 100,000 under `make fuzz`."""

from __future__ import annotations

from tests.support.effort import tries
from tests.support.mutants import bodies, try_out_alone

COUNT = tries(10_000)


def test_whatever_is_sent_is_answered_without_a_5xx_and_without_growth() -> None:
    # The caches are full by then: what grows in the last 5,000 grows with every request.
    found = try_out_alone(COUNT, seed=7, look_at=(COUNT - 6_000, COUNT - 5_000))
    assert not found.harmful, found.harmful[:3]
    assert sum(found.statuses.values()) == COUNT
    assert found.statuses[200] > 0.05 * COUNT
    assert found.statuses[400] > 0.5 * COUNT
    assert found.statuses[422] > 0.001 * COUNT
    _, before, after = found.memory_bytes
    # 20 bytes each: the interpreter's own caches move by some ten kB, whatever is sent.
    assert after - before < 100_000, f"{after - before} bytes were kept by 5,000 requests"


def test_the_same_seed_makes_the_same_bodies() -> None:
    once, again = list(bodies(50, seed=3)), list(bodies(50, seed=3))
    assert once == again
    assert once != list(bodies(50, seed=4))
