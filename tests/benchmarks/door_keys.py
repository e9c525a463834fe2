"""Does the time that the door takes for a wrong key tell how much of it is right?

Keys could be guessed byte by byte if one that begins right took longer. Guesses that share nothing, a half,
and all but the last byte with a real key, in turn, many times; beside them a second guess that shares
nothing, whose median shows how far apart medians lie by chance.
"""

from __future__ import annotations

import statistics
import time

from router.policy.tenants import Tenant
from router.service.api_keys import hash_key, new_key
from router.service.auth import Keyring
from router.service.errors import NotAuthenticated
from tests.benchmarks.report import Figure, at_most

_TENANTS = 50


def figures(rounds: int = 20_000) -> list[Figure]:
    """One row: how far apart the medians of all guesses lie, in percent of a guess's time."""
    keys = [new_key() for _ in range(_TENANTS)]
    keyring = Keyring({f"t{i}": Tenant(keys=(hash_key(key),)) for i, key in enumerate(keys)})
    key = keys[0]
    flipped = "x" if key[-1] != "x" else "y"
    guesses = {
        "nothing right": "z" * len(key),
        "nothing right either": "q" * len(key),
        "half right": key[: len(key) // 2] + "z" * (len(key) - len(key) // 2),
        "all but the last": key[:-1] + flipped,
    }
    headers = {name: {b"authorization": b"Bearer " + guess.encode()} for name, guess in guesses.items()}
    times: dict[str, list[int]] = {name: [] for name in guesses}
    for _ in range(rounds):
        for name, given in headers.items():
            begun = time.perf_counter_ns()
            try:
                keyring.tenant(given)
            except NotAuthenticated:
                times[name].append(time.perf_counter_ns() - begun)
    medians = {name: statistics.median(found) for name, found in times.items()}
    apart = max(medians.values()) - min(medians.values())
    detail = {"median_ns": medians, "rounds": rounds, "tenants": _TENANTS}
    percent = 100.0 * apart / statistics.median(medians.values())
    return [
        at_most("a wrong key's time, by how much of it is right: medians apart", percent, "%", 1.0, detail)
    ]
