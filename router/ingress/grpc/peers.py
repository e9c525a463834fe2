"""Whether a gRPC call comes from this machine: Serve's gRPC server of a replica listens everywhere."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import unquote


def is_here(peer: str, own: Collection[str]) -> bool:
    """Whether ``peer``, as gRPC writes it (``ipv4:127.0.0.1:5000``, ``ipv6:[::1]:5000``), is this machine.

    ``own`` are the machine's addresses beside loopback: HAProxy calls a replica by one of them. A peer that
    cannot be read is not this machine.
    """
    kind, _, rest = unquote(peer).partition(":")
    if kind == "unix":
        return True
    host = rest.rpartition(":")[0].strip("[]")
    try:
        address = ip_address(host)
    except ValueError:
        return False
    plain = getattr(address, "ipv4_mapped", None) or address
    return plain.is_loopback or str(plain) in own
