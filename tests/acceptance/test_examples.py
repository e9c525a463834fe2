"""The examples in the SDK's docstrings do, on a real server, what they say."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import router
from optimizers.examples.digits import test_split as real_images
from router import AsyncClient, AsyncJob, Client, Job
from router.sdk import async_client, client, errors
from tests.acceptance.conftest import Served
from tests.support.examples import Described, check, described, public

ADDRESS = "http://127.0.0.1:8000"
CLASSES = [getattr(router, name) for name in router.__all__]
MODULES = [described(module.__name__, module) for module in (router, client, async_client)]
ALL = [*MODULES, *(item for target in CLASSES for item in public(target))]


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What every example may use beside its client."""
    images, labels = real_images()
    threes = images[labels == 3]
    return {
        **{name: getattr(router, name) for name in router.__all__},
        "asyncio": asyncio,
        "image": threes[0],
        "images": threes[:2],
        "many_images": threes[:5],
    }


#: Inherited as it stands, its example is the blocking twin's; the class itself shows ``async with``.
INHERITED = ("AsyncClient.deadline",)


@pytest.mark.parametrize(
    "item", [i for i in ALL if i.examples and i.name not in INHERITED], ids=lambda item: item.name
)
async def test_the_example_is_true(item: Described, names: dict[str, Any], served: Served) -> None:
    twin = "Async" in item.name
    connected = AsyncClient(served.url) if twin else Client(served.url)
    wrong = await check(item, {**names, "client": connected}, {ADDRESS: served.url})
    closed = connected.close()
    if closed is not None:
        await closed
    assert not wrong, "\n".join(wrong)


def test_whatever_people_look_up_has_an_example() -> None:
    examples = {item.name: item.examples for item in ALL}
    wanted = [target for target in CLASSES if not issubclass(target, errors.HybridRouterError)]
    bare = [item.name for target in wanted for item in public(target) if not examples[item.name]]
    assert not bare, f"show how it is called: {bare}"
    assert {Client, AsyncClient, Job, AsyncJob} <= set(wanted)
