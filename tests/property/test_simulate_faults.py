"""Random load and random faults in virtual time: nothing is lost, told twice, run too late or overfull."""

from __future__ import annotations

import pytest

from tests.support.effort import tries
from tests.support.simulated import random_case

#: A few in every run of the tests; the online benchmark plays 200. A seed that fails replays by its number.
SEEDS = range(tries(24))


@pytest.mark.parametrize("seed", SEEDS)
def test_each_accepted_request_ends_once_and_none_is_run_too_late(seed: int) -> None:
    case = random_case(seed)
    result = case.run()
    assert result.violations == []
    assert result.requests == len(case.requests)


def test_the_seeds_meet_every_kind_of_outcome_and_fault() -> None:
    cases = [random_case(seed) for seed in SEEDS]
    kinds = {fault.kind for case in cases for fault in case.settings.faults}
    assert kinds == {"kill", "slow", "stop", "outage"}
    outcomes = {
        outcome
        for case in cases[:12]
        for tally in case.run().routes.values()
        for outcome, count in tally.outcomes.items()
        if count
    }
    assert outcomes == {"met", "late", "refused", "expired", "failed"}
