"""100,000 random and mutated bodies do no harm."""

from __future__ import annotations

from tests.support.mutants import bodies, try_out_alone


def test_whatever_is_sent_is_answered_without_a_5xx_and_without_growth() -> None:
    found = try_out_alone(100_000, seed=7, look_at=(94_000, 95_000))
    assert not found.harmful, found.harmful[:3]
    assert sum(found.statuses.values()) == 100_000
    assert found.statuses[200] > 5_000
    assert found.statuses[400] > 50_000
    assert found.statuses[422] > 100
    _, before, after = found.memory_bytes
    # 20 bytes each: the interpreter's own caches move by some ten kB, whatever is sent.
    assert after - before < 100_000, f"{after - before} bytes were kept by 5,000 requests"


def test_the_same_seed_makes_the_same_bodies() -> None:
    once, again = list(bodies(50, seed=3)), list(bodies(50, seed=3))
    assert once == again
    assert once != list(bodies(50, seed=4))
