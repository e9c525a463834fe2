"""Quotas as arithmetic: rates, bursts, rows and requests in flight, with time as an argument."""

from __future__ import annotations

import pytest

from router.policy import parse
from router.policy.tenants import TenantLimits
from router.scheduling.rate_limits import Quotas


def quotas(routers: int = 1, **limits: object) -> Quotas:
    own = TenantLimits.model_validate(limits)
    return Quotas(lambda tenant: own if tenant == "t" else TenantLimits(), routers)


def entered(counted: Quotas, *times_ms: float, tenant: str = "t") -> list[bool]:
    return [counted.enter(tenant, now) is None for now in times_ms]


def took_rows(counted: Quotas, rows: int, now_ms: float) -> bool:
    if counted.over_rows("t", rows, now_ms) is not None:
        return False
    counted.take_rows("t", rows, now_ms)
    return True


def test_a_seconds_worth_may_come_at_once_and_then_one_at_a_time() -> None:
    counted = quotas(rate="10/s")
    assert entered(counted, *[0.0] * 11) == [True] * 10 + [False]
    assert entered(counted, 99.0, 100.0, 101.0) == [False, True, False]
    # After a pause there is a burst again, and never more than one.
    assert sum(entered(counted, *[60_000.0] * 30)) == 10


def test_a_burst_of_ones_own_bounds_what_comes_at_once() -> None:
    counted = quotas(rate="10/s", burst=2)
    assert entered(counted, 0.0, 0.0, 0.0) == [True, True, False]


@pytest.mark.parametrize(("rate", "wait_s"), [("10/s", 0.1), ("60/min", 1.0), ("2/h", 1800.0)])
def test_who_comes_back_as_told_is_let_in_and_a_moment_sooner_is_not(rate: str, wait_s: float) -> None:
    counted = quotas(rate=rate, burst=1)
    assert counted.enter("t", 0.0) is None
    over = counted.enter("t", 0.0)
    assert over is not None and over.retry_after_s == pytest.approx(wait_s)
    assert "tenant 't' is over its" in over.what
    assert entered(counted, wait_s * 1_000.0 - 1.0, wait_s * 1_000.0 + 1e-6) == [False, True]


def test_refused_requests_do_not_push_the_time_away() -> None:
    counted = quotas(rate="1/s", burst=1)
    entered(counted, 0.0)
    assert not any(entered(counted, *[500.0] * 1_000))
    assert entered(counted, 1_000.0) == [True]


def test_requests_in_flight_are_bounded_until_they_leave() -> None:
    counted = quotas(in_flight=2)
    assert entered(counted, 0.0, 0.0, 1e9) == [True, True, False]
    over = counted.enter("t", 0.0)
    assert over is not None and over.retry_after_s == 1.0 and "in flight" in over.what
    counted.leave("t")
    assert entered(counted, 0.0, 0.0) == [True, False]


def test_a_refusal_takes_neither_a_place_nor_a_part_of_the_rate() -> None:
    counted = quotas(rate="1/s", burst=5, in_flight=1)
    assert entered(counted, 0.0, 0.0, 0.0) == [True, False, False]
    counted.leave("t")
    for _ in range(4):  # the four that are left of the burst: those refused took none
        assert entered(counted, 0.0) == [True]
        counted.leave("t")
    assert entered(counted, 0.0) == [False]
    # Refused for its rate: nothing to leave.
    assert entered(counted, 1_000.0) == [True]


def test_rows_have_a_rate_of_their_own_and_one_large_request_fits_a_full_bucket() -> None:
    counted = quotas(row_rate="100/s")
    assert took_rows(counted, 60, 0.0)
    over = counted.over_rows("t", 60, 0.0)
    assert over is not None and over.retry_after_s == pytest.approx(0.2) and "100 rows/s" in over.what
    assert took_rows(counted, 60, 201.0)
    # More rows than the burst would otherwise never be let in.
    assert took_rows(counted, 1_000, 60_000.0)
    assert not took_rows(counted, 1, 61_000.0)


def test_rows_that_are_given_back_are_there_again_and_no_more_than_were_taken() -> None:
    counted = quotas(row_rate="100/s")
    assert took_rows(counted, 100, 0.0)
    assert not took_rows(counted, 1, 0.0)
    counted.give_rows_back("t", 100)
    assert took_rows(counted, 100, 0.0)
    assert not took_rows(counted, 1, 0.0)
    counted.give_rows_back("nobody", 100)
    counted.give_rows_back("t", 100)
    assert sum(took_rows(counted, 1, 60_000.0) for _ in range(300)) == 100  # never more than a burst


def test_what_is_answered_at_once_counts_for_the_rate_and_takes_no_place() -> None:
    counted = quotas(rate="2/s", burst=2, in_flight=1)
    assert counted.enter("t", 0.0) is None
    assert not counted.has_place("t")
    assert counted.enter_briefly("t", 0.0) is None
    over = counted.enter_briefly("t", 0.0)
    assert over is not None and "over its 2 requests/s" in over.what
    counted.leave("t")
    assert counted.has_place("t")


def test_tenants_do_not_use_up_each_others_and_routers_share_evenly() -> None:
    counted = quotas(rate="1/s", burst=1)
    assert entered(counted, 0.0, 0.0) == [True, False]
    assert entered(counted, 0.0, 0.0, tenant="u") == [True, True]
    shared = quotas(routers=4, rate="8/s", in_flight=2)
    # A quarter of a second's worth; of two places in flight each router keeps at least one.
    assert entered(shared, 0.0, 0.0) == [True, False]
    shared.leave("t")
    assert entered(shared, 0.0, 0.0) == [True, False]


def test_a_tenant_has_its_own_limits_where_it_names_them_and_the_common_ones_elsewhere() -> None:
    policy = parse(
        "models: {m: {artifacts: a, online: {variants: [v]}}}\n"
        "tenants: {acme: {rate: 100/s, queue: {jobs: 7}}, zoo: {}}\n"
        "limits: {tenant: {rate: 5/s, in_flight: 3, queue: {jobs: 2, bytes: 1KiB}}}\n"
    )
    acme, zoo, none = (policy.limits_of(name) for name in ("acme", "zoo", ""))
    assert (acme.rate, acme.in_flight) == (100.0, 3)
    assert (zoo.rate, zoo.in_flight) == (none.rate, none.in_flight) == (5.0, 3)
    assert policy.limits_tenants
    settings = policy.queue_settings
    assert (settings["tenant_jobs"], settings["tenant_bytes"]) == (2, 1024)
    assert settings["bounds"] == {"acme": (7, None)}
