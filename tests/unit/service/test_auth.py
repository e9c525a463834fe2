"""Keys and tenants: who is let in, who is not, and that how a guess is refused says nothing about it."""

from __future__ import annotations

import contextlib
import hmac

import pytest

from router.policy.tenants import Tenant
from router.service.api_keys import hash_key, new_key
from router.service.auth import Keyring
from router.service.errors import NotAuthenticated, NotPermitted, ServiceError

ACME, OTHER, ZOO = "hr_acme", "hr_acme_too", "hr_zoo"
TENANTS = {
    "acme": Tenant(keys=(hash_key(ACME), hash_key(OTHER)), models=("m",)),
    "zoo": Tenant(keys=(hash_key(ZOO),)),
    "nobody": Tenant(),
}
RING = Keyring(TENANTS)
OPEN = Keyring({"acme": Tenant(models=("m",)), "zoo": Tenant()})


@pytest.mark.parametrize(
    ("headers", "tenant"),
    [
        ({b"authorization": b"Bearer hr_acme"}, "acme"),
        ({b"authorization": b"bearer   hr_acme_too "}, "acme"),
        ({b"x-api-key": b"hr_zoo"}, "zoo"),
        ({b"authorization": b"Basic xyz", b"x-api-key": b"hr_zoo"}, "zoo"),
        ({b"authorization": b"Bearer hr_zoo", b"tenant": b"zoo"}, "zoo"),
    ],
)
def test_a_known_key_is_its_tenant(headers: dict[bytes, bytes], tenant: str) -> None:
    assert RING.secured
    assert RING.tenant(headers) == tenant


@pytest.mark.parametrize(
    ("headers", "error", "said"),
    [
        ({}, NotAuthenticated, "an API key is needed: send 'Authorization: Bearer KEY', or 'X-Api-Key: KEY'"),
        ({b"authorization": b"Bearer "}, NotAuthenticated, "an API key is needed"),
        ({b"authorization": b"hr_acme"}, NotAuthenticated, "an API key is needed"),
        ({b"x-api-key": b""}, NotAuthenticated, "an API key is needed"),
        ({b"tenant": b"acme"}, NotAuthenticated, "an API key is needed"),
        ({b"x-api-key": b"hr_acm"}, NotAuthenticated, "this API key is not known here"),
        ({b"x-api-key": b"\xff\x00"}, NotAuthenticated, "this API key is not known here"),
        ({b"x-api-key": b"x" * 100_000}, NotAuthenticated, "this API key is not known here"),
        ({b"x-api-key": hash_key(ACME).encode()}, NotAuthenticated, "this API key is not known here"),
        ({b"x-api-key": b"hr_zoo", b"tenant": b"acme"}, NotPermitted, "the API key does not belong to"),
    ],
)  # fmt: skip
def test_who_brings_none_or_another_is_refused_without_a_word_of_the_key(
    headers: dict[bytes, bytes], error: type[ServiceError], said: str
) -> None:
    with pytest.raises(error) as caught:
        RING.tenant(headers)
    assert str(caught.value).startswith(said)
    given = headers.get(b"x-api-key")
    assert not given or given.decode("latin-1") not in str(caught.value)


@pytest.mark.parametrize(
    "guess", [b"", b"h", b"hr_acm", b"hr_acme", b"hr_zoo", b"hr_acme_to", b"\xff" * 20, b"x" * 513]
)
def test_every_known_key_is_compared_in_constant_time_whatever_the_guess(
    monkeypatch: pytest.MonkeyPatch, guess: bytes
) -> None:
    compared: list[tuple[str, str]] = []

    real = hmac.compare_digest

    def compare(known: str, hashed: str) -> bool:
        compared.append((known, hashed))
        return real(known, hashed)

    monkeypatch.setattr("router.service.auth.hmac.compare_digest", compare)
    with contextlib.suppress(NotAuthenticated):
        RING.tenant({b"authorization": b"Bearer " + guess})
    known = [key for tenant in TENANTS.values() for key in tenant.keys]
    # None where the header brings no key at all; else all of them, in the order of the file.
    assert [pair[0] for pair in compared] == (known if guess else [])
    # Hashes are compared, never keys; what is too long to be one is not even hashed.
    assert {pair[1] for pair in compared} <= {"" if len(guess) > 512 else hash_key(guess)}


def test_without_any_key_the_header_is_believed_and_must_name_a_tenant() -> None:
    assert not OPEN.secured
    assert OPEN.tenant({}) == ""
    assert OPEN.tenant({b"tenant": b"zoo"}) == "zoo"
    with pytest.raises(NotPermitted, match="no tenant of the name"):
        OPEN.tenant({b"tenant": b"stranger"})


@pytest.mark.parametrize(
    ("tenant", "model", "may"),
    [("acme", "m", True), ("acme", "o", False), ("zoo", "o", True), ("", "o", True)],
)
def test_a_tenant_uses_the_models_that_it_is_given(tenant: str, model: str, may: bool) -> None:
    assert RING.may_use(tenant, model) is may


def test_keys_are_long_random_and_kept_as_hashes_only() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100 and all(len(key) == 46 and key.startswith("hr_") for key in keys)
    key = keys.pop()
    ring = Keyring({"t": Tenant(keys=(hash_key(key),))})
    assert key not in repr(vars(ring))
    assert hash_key(key) == hash_key(key.encode()) and len(hash_key(key)) == 71
