"""What people paste into a policy by mistake is in no error, whatever is wrong with the file."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from router.policy import PolicyError, parse
from router.policy.reading import digest_of
from router.policy.secrets import holds_password
from router.serving.policy_file import PolicyFile, follow
from workers.queue.contract import QueueUnavailable
from workers.queue.redis import client
from workers.queue.redis.client import resolve_url

MODEL = "models: {m: {artifacts: a, online: {variants: [v]}}}\n"
#: Made as `router.service.api_keys.new_key` makes them.
KEY = "hr_" + "aB3-_xYz" * 5 + "Qw1"
WORD = "correct.horse"
HASH = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    "text",
    [
        f"tenants: {{acme: {{keys: [{KEY}]}}}}",
        f"tenants: {{acme: {{keys: {KEY}}}}}",
        f"tenants: {{acme: {{keys: [{{{KEY}: 1}}]}}}}",
        f"tenants: {{acme: {KEY}}}",
        f"tenants: {KEY}",
        f"tenants: {{acme: {{key: {KEY}}}}}",
        f"tenants: {{acme: {{{KEY}: 1}}}}",
        f"tenants: {{acme: {{keys: [{WORD}]}}}}",
        f"tenants: {{acme: {WORD}}}",
        f"tenants: {WORD}",
        f"tenants: {{acme: {{rate: {KEY}}}}}",
        f"tenants: {{acme: {{weight: {KEY}}}}}",
        f"tenants: {{acme: {{models: {KEY}}}}}",
        f"tenants: {{acme: {{keys: [{HASH}], keys: [{KEY}]}}}}",
        f"limits: {{rows: {KEY}}}",
        f"{KEY}: 1",
        f"redis: {{url: 'redis://:{WORD}@host:6379/0'}}",
        f"redis: {{url: 'redis://user:{WORD}#@host:6379/0'}}",
        f"redis: {{url: 'unix:///run/redis.sock?password={WORD}'}}",
        f"redis: 'redis://:{WORD}@host'",
        f"redis: {{'redis://:{WORD}@host': null}}",
        f"redis: {{fsync: '{WORD}'}}",
        f"redis: {{namespace: '{WORD}'}}",
        f"redis: {{url: ['{WORD}']}}",
        f"redis: {{url: redis://host, data: {{a: {WORD}}}}}",
        f"defaults: {{budget: 'redis://:{WORD}@host'}}",
        f"redis: {{url: *{WORD}}}",
        f"redis: {{url: !{WORD} x}}",
        f"tenants: {{acme: {{keys: [{KEY}\n",
        f"tenants: {{acme: {{keys: ['{KEY}]}}}}",
        f"tenants:\n  acme:\n   keys: [{KEY}]\n  - {KEY}: x: y",
    ],
)
def test_no_error_shows_a_secret(text: str) -> None:
    with pytest.raises(PolicyError) as refused:
        parse(MODEL + text + "\n")
    for shown in (str(refused.value), repr(refused.value), *refused.value.problems):
        assert KEY not in shown
        assert WORD not in shown
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_what_is_no_secret_is_still_shown() -> None:
    with pytest.raises(PolicyError, match="got -1"):
        parse(MODEL + "tenants: {acme: {weight: -1}}\n")
    with pytest.raises(PolicyError, match="hybrid-router key new"):
        parse(MODEL + f"tenants: {{acme: {{keys: [{KEY}]}}}}\n")


async def test_the_log_of_a_router_says_what_is_wrong_without_the_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(MODEL)
    file = PolicyFile(path, parse(MODEL), digest_of(MODEL))
    path.write_text(MODEL + f"tenants: {{acme: {{keys: [{KEY}], weight: -3}}}}\n")
    rounds = iter([None, None])

    async def sleep(_: float) -> None:
        next(rounds)

    caplog.set_level(logging.INFO, "ray.serve")
    logging.getLogger("ray.serve").addHandler(caplog.handler)
    with pytest.raises(RuntimeError):  # what an exhausted iterator becomes
        await follow(file, lambda look: None, sleep=sleep)
    logging.getLogger("ray.serve").removeHandler(caplog.handler)
    assert "tenants.acme.keys" in caplog.text and "got -3" in caplog.text
    assert KEY not in caplog.text
    assert "acme" not in str(file.describe())


@pytest.mark.parametrize(
    ("url", "held"),
    [
        ("redis://host:6379/0", False),
        ("redis://user@host:6379/0", False),
        ("rediss://:word@host", True),
        ("redis://user:word@host", True),
        ("redis://:wo#rd/@host", True),
        ("unix:///run/redis.sock?db=0", False),
        ("unix:///run/redis.sock?Password=word", True),
        ("file:/run/secrets/redis", False),
        ("env:REDIS_URL", False),
    ],
)
def test_a_password_in_a_url_is_found(url: str, held: bool) -> None:
    assert holds_password(url) is held


def test_a_url_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUE_URL", f"redis://:{WORD}@host:1\n")
    assert resolve_url("env:QUEUE_URL") == f"redis://:{WORD}@host:1"
    monkeypatch.delenv("QUEUE_URL")
    with pytest.raises(QueueUnavailable, match=r"'QUEUE_URL' .* is not set"):
        resolve_url("env:QUEUE_URL")


def test_a_url_that_cannot_be_read_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUE_URL", f"redis://:{WORD}#more@host")
    with pytest.raises(QueueUnavailable, match="%23") as refused:
        client.connect("env:QUEUE_URL")
    assert WORD not in str(refused.value) and refused.value.__suppress_context__
