"""The page at /docs in a real browser: requests are tried, queued ones followed, no other host is asked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import orjson
import pytest

from router.policy.tenants import Tenant
from router.service.api_keys import hash_key, new_key
from tests.acceptance.conftest import Served
from tests.support.browser import Page, browsing
from tests.support.live import live

CTRL = 2
_LISTED = "document.querySelectorAll('#variants tr').length"
_ENDED = "document.querySelector('#status').className"


@pytest.fixture
def page() -> Iterator[Page]:
    with browsing() as opened:
        yield opened


def fact(page: Page, name: str) -> str:
    """A figure of the answer, by its name on the page."""
    facts = page.text("#facts").split("\n")
    return facts[facts.index(name) + 1]


def check_own_host_only(page: Page, url: str) -> None:
    hosts = {urlsplit(asked).netloc for asked in page.requested}
    assert hosts == {urlsplit(url).netloc}
    assert not [line for line in page.said if "Content Security Policy" in line or "exception" in line], (
        page.said
    )


def test_a_request_is_tried_and_answered_from_the_page(served: Served, page: Page) -> None:
    page.open(f"{served.url}/docs")
    assert page.wait(_LISTED) == 3
    assert "image FP32 [n, 1, 8, 8]" in page.text("#signature")
    assert all(name in page.text("#variants") for name in ("float32", "int8", "tree"))
    page.wait("document.querySelector('#load').innerText.includes('queue')")

    page.fill("#budget", "2000")
    page.fill("#variant", "int8")
    page.click("#send")
    page.wait(_ENDED)
    assert page.text("#status") == "200: answered"
    told = [fact(page, name) for name in ("Route", "Variant", "Path")]
    assert told == ["interactive", "int8", "online"]
    assert fact(page, "Deadline-Met") in ("true", "false")
    assert float(fact(page, "Predicted-Ms")) > 0
    answer = orjson.loads(page.text("#result"))
    assert answer["outputs"][0]["name"] == "label"
    assert 0 <= answer["outputs"][0]["data"][0] <= 9
    check_own_host_only(page, served.url)


def test_a_queued_request_is_followed_until_it_is_done(served: Served, page: Page) -> None:
    page.open(f"{served.url}/docs")
    page.wait(_LISTED)
    page.fill("#budget", "60000")
    page.click("#async")
    # By the keyboard alone, from the field with the body.
    page.focus("#body")
    page.press("Enter", 13, CTRL)
    page.wait(_ENDED, within_s=60)
    assert page.text("#status") == "200: answered"
    assert (fact(page, "Route"), fact(page, "Path")) == ("bulk", "batch")
    assert any("/v2/requests/digits.bulk." in asked for asked in page.requested)
    check_own_host_only(page, served.url)


def test_what_is_wrong_is_said_and_the_lines_to_copy_work(served: Served, page: Page) -> None:
    page.open(f"{served.url}/docs")
    page.wait(_LISTED)
    page.fill("#budget", "2000")
    curl, python = page.text("#curl"), page.text("#python")
    page.fill("#body", '{"inputs": []}')
    page.click("#send")
    page.wait(f"{_ENDED} == 'bad'")
    assert page.text("#status").startswith("422: ")
    assert "image" in page.text("#status")

    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(["sh", "-c", curl], capture_output=True, check=True, env=clean, timeout=30)
    assert orjson.loads(done.stdout)["model_name"] == "digits"
    lines = subprocess.run(
        [sys.executable, "-c", python], capture_output=True, env=clean, timeout=60, text=True
    )
    assert lines.returncode == 0, lines.stderr
    assert "'label': array([" in lines.stdout


def test_under_a_prefix_and_with_a_slash_at_the_end_it_works_the_same(page: Page) -> None:
    with live("/ml/v1") as url:
        page.open(f"{url}/docs/")
        page.wait(_LISTED)
        page.fill("#budget", "60000")
        page.click("#async")
        page.click("#send")
        page.wait(_ENDED)
        assert fact(page, "Path") == "batch"
        assert all(urlsplit(asked).path.startswith("/ml/v1/") for asked in page.requested)
        check_own_host_only(page, url)


def test_where_a_key_is_needed_it_is_asked_for_and_stays_in_memory(page: Page) -> None:
    key = new_key()
    with live(tenants={"t": Tenant(keys=(hash_key(key),), models=("o",))}) as url:
        page.open(f"{url}/docs")
        page.wait("!document.querySelector('#trouble').hidden")
        assert "an API key is needed" in page.text("#trouble")
        page.fill("#key", "hr_wrong")
        page.focus("#key")
        page.press("Enter", 13)
        page.wait("document.querySelector('#trouble').innerText.includes('not known')")
        page.fill("#key", key)
        page.press("Enter", 13)
        page.wait(_LISTED)
        assert page.text("#models") == "o"
        page.click("#send")
        page.wait(_ENDED)
        assert page.text("#status") == "200: answered"
        assert key not in page.text("body")
        assert page.run("document.cookie + JSON.stringify({...localStorage, ...sessionStorage})") == "{}"
        assert not [asked for asked in page.requested if key in asked]
