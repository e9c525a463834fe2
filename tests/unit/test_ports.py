"""A free port is one that nobody has, and that the system gives to nobody before it is opened."""

from __future__ import annotations

import itertools
import socket
from pathlib import Path

import pytest

from workers import ports
from workers.ports import check_port, free_port, free_ports


@pytest.fixture(autouse=True)
def nothing_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_reserved", set())


def test_it_is_below_the_range_that_the_system_draws_from() -> None:
    drawn_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(1024 < free_port() < min(drawn_from, 32_768) for _ in range(200))


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]
)
def test_one_that_somebody_listens_on_is_not_free(
    monkeypatch: pytest.MonkeyPatch, family: socket.AddressFamily, host: str
) -> None:
    with socket.socket(family) as listener:
        first = free_ports(4)
        listener.bind((host, first + 2))
        listener.listen()
        with pytest.raises(OSError, match="Address already in use"):
            check_port("0.0.0.0", first + 2)
        # Of a row the ends and the middle are tried: with nothing but this row to choose from, none is left.
        ports._reserved.clear()
        monkeypatch.setattr(ports, "_FIRST", first - 4)
        monkeypatch.setattr(ports, "_SPAN", 8)
        with pytest.raises(OSError, match="no 4 free ports in a row"):
            free_ports(4)
    assert free_ports(4) == first, "nobody listens there any more"


def test_rows_do_not_overlap_and_single_ports_lie_in_none() -> None:
    rows = sorted(free_ports(200) for _ in range(20))
    assert all(b - a >= 200 for a, b in itertools.pairwise(rows))
    single = [free_port() for _ in range(200)]
    assert max(single) < rows[0]
    assert len(set(single)) == 200, "one that was given before may not be open yet"


def test_a_row_leaves_out_what_is_meant_for_another() -> None:
    # A tenth of the range: other processes may hold a port of some rows.
    wanted = free_ports(1_000) + 350
    ports._reserved.clear()
    assert all(
        not start <= wanted < start + 1_000 for start in (free_ports(1_000, [wanted]) for _ in range(4))
    )
