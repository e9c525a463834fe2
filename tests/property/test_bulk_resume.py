"""A run that is stopped at any point and started again: the same RESULTS, and no row computed twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from router.bulk.disk import AppendFile
from router.bulk.errors import LedgerError
from router.bulk.store import Paths
from tests.unit.bulk.harness import BulkServer, Crash, FaultyDisk, order_of, submit, table

ROWS, POISONED = 20, (3, 17)
FORMATS = ("out.jsonl", "out.csv", "out.npy", "out.parquet")


def setting(tmp_path: Path, name: str, **changes: object) -> tuple[Path, dict[str, object]]:
    source = tmp_path / "in.npy"
    if not source.exists():
        np.save(source, table(ROWS, POISONED))
    if name.endswith(".npy"):
        changes["outputs"] = ("double",)
    return source, changes


async def undisturbed(tmp_path: Path, name: str) -> tuple[bytes, bytes, int, int, BulkServer]:
    """RESULTS, failures, disk operations and server requests of a run that nothing stops."""
    source, changes = setting(tmp_path, name)
    results, disk, server = tmp_path / f"calm-{name}", FaultyDisk(), BulkServer()
    await submit(server, order_of(source, results, **changes), disk=disk)
    failed = Paths(results).failed.read_bytes()
    return results.read_bytes(), failed, disk.count, server.requests, server


def left_over(results: Path) -> set[str]:
    return {p.name for p in results.parent.iterdir() if p.name.startswith(results.name)}


@pytest.mark.parametrize("name", FORMATS)
async def test_a_process_killed_at_any_write_goes_on_to_the_same_bytes(tmp_path: Path, name: str) -> None:
    expected, failures, operations, _, calm = await undisturbed(tmp_path, name)
    assert operations > 20
    source, changes = setting(tmp_path, name)
    # All of them for one format; the others share its code and add their own bytes.
    every = 1 if name == "out.jsonl" else 7
    for point in range(1, 2 * operations + 1, every):
        folder = tmp_path / f"at-{point}"
        folder.mkdir()
        server, results = BulkServer(), folder / name
        order = order_of(source, results, **changes)
        with pytest.raises(Crash):
            await submit(server, order, disk=FaultyDisk(point / 2))
        if Paths(results).ledger.exists():
            await submit(server, order)
        assert results.read_bytes() == expected, point
        assert Paths(results).failed.read_bytes() == failures, point
        assert server.taken == calm.taken, point
        assert left_over(results) == {name, f"{name}.failed.jsonl"}, point


async def test_a_process_killed_at_any_exchange_is_continued_to_the_same_bytes(tmp_path: Path) -> None:
    name = "out.jsonl"
    expected, failures, _, requests, calm = await undisturbed(tmp_path, name)
    source, _ = setting(tmp_path, name)
    for point in range(1, requests + 1):
        folder = tmp_path / f"at-{point}"
        folder.mkdir()
        server, results = BulkServer(), folder / name
        server.crash_at = point
        order = order_of(source, results)
        with pytest.raises(Crash):
            await submit(server, order)
        server.dead = False
        await submit(server, order)
        assert results.read_bytes() == expected, point
        assert Paths(results).failed.read_bytes() == failures, point
        assert server.taken == calm.taken, point


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl"])
async def test_rows_that_cannot_be_read_shift_nothing_for_who_goes_on(tmp_path: Path, name: str) -> None:
    lines = [f"{n}, {n}.5" if name == "in.csv" else f"[{n}, {n}.5]" for n in range(ROWS)]
    lines[2], lines[9], lines[18] = '2, "2.5', "9", "18, \udcff"
    source = tmp_path / name
    source.write_bytes(("a,b\n" * (name == "in.csv") + "\n\n".join(lines)).encode("utf-8", "surrogateescape"))
    calm = BulkServer()
    order = order_of(source, tmp_path / "calm.jsonl", rows_per_request=3)
    await submit(calm, order)
    expected, failures = order.results.read_bytes(), Paths(order.results).failed.read_bytes()
    assert failures.count(b"\n") == 3
    for point in range(1, calm.requests + 1):
        server = BulkServer()
        server.crash_at = point
        order = order_of(source, tmp_path / f"at-{point}.jsonl", rows_per_request=3)
        with pytest.raises(Crash):
            await submit(server, order)
        server.dead = False
        await submit(server, order)
        assert order.results.read_bytes() == expected, point
        assert Paths(order.results).failed.read_bytes() == failures, point
        assert server.taken == calm.taken, point


async def test_a_process_killed_again_while_it_goes_on_is_continued_too(tmp_path: Path) -> None:
    name = "out.jsonl"
    expected, failures, operations, _, calm = await undisturbed(tmp_path, name)
    source, _ = setting(tmp_path, name)
    again = 0
    for point in range(1, operations):
        folder = tmp_path / f"at-{point}"
        folder.mkdir()
        server, results = BulkServer(), folder / name
        order = order_of(source, results)
        # The second falls in the middle of its writes soon after it has cut off what the first left torn.
        for disk in (FaultyDisk(point + 0.5), FaultyDisk(5.5)):
            try:
                await submit(server, order, disk=disk)
            except Crash:
                again += 1
        if Paths(results).ledger.exists():
            await submit(server, order)
        assert results.read_bytes() == expected, point
        assert Paths(results).failed.read_bytes() == failures, point
        assert server.taken == calm.taken, point
    assert again > operations


async def test_what_the_server_is_known_to_hold_is_not_sent_again(tmp_path: Path) -> None:
    source, _ = setting(tmp_path, "out.jsonl")
    server, order = BulkServer(), order_of(source, tmp_path / "out.jsonl")
    disk = FaultyDisk(9)  # the ledger has its first requests, RESULTS nothing
    with pytest.raises(Crash):
        await submit(server, order, disk=disk)
    held = Paths(order.results).ledger.read_bytes().count(b'"job"')
    assert held >= 2
    before = len(server.posted)
    await submit(server, order)
    first = {request.headers["idempotency-key"] for request in server.posted[:before]}
    again = [r for r in server.posted[before:] if r.headers["idempotency-key"] in first]
    assert len(again) <= before - held


async def test_ledger_lines_whose_results_the_machine_lost_are_not_believed(
    tmp_path: Path,
) -> None:
    expected, _, _, _, calm = await undisturbed(tmp_path, "out.jsonl")
    source, _ = setting(tmp_path, "out.jsonl")
    server, order = BulkServer(), order_of(source, tmp_path / "out.jsonl")
    disk = FaultyDisk((await _operations_before_finish(tmp_path, source)) - 1)
    with pytest.raises(Crash):
        await submit(server, order, disk=disk)
    content = order.results.read_bytes()
    assert content
    order.results.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    await submit(server, order)
    assert order.results.read_bytes() == expected
    assert server.taken == calm.taken


async def _operations_before_finish(tmp_path: Path, source: Path) -> int:
    """How many disk operations there are before RESULTS is synced for the last time."""
    synced: list[int] = []

    class Watching(FaultyDisk):
        def open(self, path: Path) -> AppendFile:
            file, disk = super().open(path), self
            real = file.sync

            def sync() -> None:
                synced.append(disk.count)
                real()

            file.sync = sync  # type: ignore[method-assign]
            return file

    order = order_of(source, tmp_path / "watched.jsonl")
    await submit(BulkServer(), order, disk=Watching())
    return synced[1]  # the first is the ledger's head


async def test_synced_results_that_are_gone_are_refused(tmp_path: Path) -> None:
    np.save(source := tmp_path / "in.npy", table(80))
    server, order = BulkServer(), order_of(source, tmp_path / "out.jsonl")
    server.crash_at = 18  # of the 20 exchanges that ten requests take
    with pytest.raises(Crash):
        await submit(server, order, sync_always=True)
    server.dead = False
    order.results.write_bytes(b"")
    with pytest.raises(LedgerError, match="shorter than"):
        await submit(server, order)
    tally = await submit(server, order, restart=True)
    assert (tally.rows, tally.resumed_at) == (80, 0)
