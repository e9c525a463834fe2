"""A program that uses a client, forks, and goes on with the client in every process.

``python -m tests.support.forked_client URL WHAT``: ends with 0 where all of them got what they asked
for. A program of its own, as the process of a test runner, which has threads, should not fork.
"""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from router import AsyncClient, Client, HybridRouterError
from tests.unit.sdk.harness import score

CHILDREN, CALLS, BEFORE = 3, 150, 8


def _image(number: int) -> np.ndarray:
    return np.full((2, 2), float(number % 10), np.float32)


def _check(outputs: np.ndarray, number: int) -> None:
    wanted = score(_image(number)[None])
    assert np.array_equal(outputs, wanted), f"call {number}: {outputs.tolist()}, not {wanted.tolist()}"


def _forked(work: Callable[[], object]) -> int:
    """The pid of a child that does ``work`` and ends with 0 if that raised nothing."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _all_well(pids: list[int]) -> None:
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0] * len(pids), codes


def blocking(url: str) -> None:
    with Client(url) as client:

        def call(number: int) -> None:
            _check(client.infer("digits", _image(number), budget="30s").output, number)

        def child() -> None:
            for number in range(CALLS):
                call(number)
            client.close()

        with ThreadPoolExecutor(BEFORE) as threads:
            list(threads.map(call, range(BEFORE)))
        pids = [_forked(child) for _ in range(CHILDREN)]
        for number in range(CALLS):
            call(number)
        _all_well(pids)
        call(0)


def awaited(url: str) -> None:
    client = AsyncClient(url)

    async def call(number: int) -> None:
        _check((await client.infer("digits", _image(number), budget="30s")).output, number)

    async def calls() -> None:
        for number in range(CALLS):
            await call(number)

    async def main() -> None:
        async with client:
            await asyncio.gather(*map(call, range(BEFORE)))
            pids = [_forked(lambda: asyncio.run(calls())) for _ in range(CHILDREN)]
            await calls()
            await asyncio.to_thread(_all_well, pids)
            await call(0)

    asyncio.run(main())


def map_of_the_parent(url: str) -> None:
    """A child that is forked in the middle of a map leaves it, or asks it for more; the parent's goes on."""
    with Client(url) as client:
        results = client.map("digits", map(_image, range(6)), rows_per_request=1, concurrency=3)
        _check(next(results).output[None], 0)

        def leaves() -> None:
            results.close()

        def goes_on() -> None:
            try:
                next(results)
            except HybridRouterError as error:
                assert "before a fork" in str(error), error
            else:
                raise AssertionError("the child was given the parent's result")

        _all_well([_forked(leaves), _forked(goes_on)])
        client.stats("digits")  # by which the server knows that it may answer the rest
        for number, result in enumerate(results, 1):
            _check(result.output[None], number)


def shared_deadline(url: str) -> None:
    """A child within the block has what is left of its budget, and ends its copy of the block by itself."""
    with Client(url) as client:

        def child() -> None:
            with client.deadline("10s"):
                client.infer("digits", _image(1))
            client.infer("digits", _image(2))

        with client.deadline("20s"):
            pid = _forked(child)
            _all_well([pid])
            client.infer("digits", _image(3))
        client.infer("digits", _image(4))


if __name__ == "__main__":
    {f.__name__: f for f in (blocking, awaited, map_of_the_parent, shared_deadline)}[sys.argv[2]](sys.argv[1])
