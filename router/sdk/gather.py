"""Several coroutines at once, of which the first error is raised as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


async def gather(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Their values in order. The first error cancels the others and is raised, not a group of errors."""
    if len(coroutines) == 1:
        return [await coroutines[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        _raise_first(errors)
    return [task.result() for task in tasks]


def _raise_first(errors: BaseExceptionGroup[BaseException]) -> NoReturn:
    error = errors.exceptions[0]
    if isinstance(error, BaseExceptionGroup):
        _raise_first(error)
    raise error from None
