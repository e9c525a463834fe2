"""Who asks: an API key becomes a tenant. Only hashes are known here, compared in constant time."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from router.policy.tenants import Tenant
from router.service.api_keys import MAX_KEY_CHARS, hash_key
from router.service.errors import NotAuthenticated, NotPermitted


class Keyring:
    """The tenants of a policy by the hashes of their keys."""

    def __init__(self, tenants: Mapping[str, Tenant]) -> None:
        self._tenants = tenants
        self._by_hash = {key: name for name, tenant in tenants.items() for key in tenant.keys}

    @property
    def secured(self) -> bool:
        """Whether callers must bring a key: as soon as any tenant has one."""
        return bool(self._by_hash)

    def tenant(self, headers: Mapping[bytes, bytes]) -> str:
        """The tenant that a request acts for, from its headers (names in lower case); empty for none.

        With keys: the key's, and a header ``Tenant`` may only repeat it. Without any keys the header is
        believed, for use behind a gateway that has asked already. Raises `NotAuthenticated`, `NotPermitted`.
        """
        named = headers.get(b"tenant")
        if not self._by_hash:
            return "" if named is None else self._known(named)
        given = _given_key(headers)
        if given is None:
            raise NotAuthenticated(
                "an API key is needed: send 'Authorization: Bearer KEY', or 'X-Api-Key: KEY'"
            )
        tenant = self._tenant_of(given)
        if named is not None and named.decode("latin-1") != tenant:
            raise NotPermitted("the API key does not belong to the tenant that the Tenant header names")
        return tenant

    def _tenant_of(self, key: bytes) -> str:
        hashed = hash_key(key) if len(key) <= MAX_KEY_CHARS else ""
        tenant_name = ""
        # All of them, whichever matches: how long it takes says nothing about how near a guess came.
        for known, tenant in self._by_hash.items():
            if hmac.compare_digest(known, hashed):
                tenant_name = tenant
        if not tenant_name:
            raise NotAuthenticated("this API key is not known here")
        return tenant_name

    def _known(self, named: bytes) -> str:
        name = named.decode("latin-1")
        if name not in self._tenants:
            raise NotPermitted("the policy has no tenant of the name in the Tenant header")
        return name

    def may_use(self, tenant: str, model: str) -> bool:
        """Whether the tenant is allowed the model."""
        own = self._tenants.get(tenant)
        return own is None or own.models is None or model in own.models


def _given_key(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The key that a request brings; None where it brings none."""
    scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and credentials.strip():
        return credentials.strip()
    return headers.get(b"x-api-key") or None
