"""What the protocol's extensions can ask for and this server does not do: refused by name, by both doors.

Pure. Parameters that are not named here are let through, since the protocol leaves parameters open and a
policy's conditions may ask for any. So is ``priority``: by Triton's schedule policy extension it is a wish
that a server without priority levels passes over; deadlines order the work here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.ingress.codec.json_data import MalformedRequest

_STATELESS = "models here keep no state between requests; leave it out"
_NO_SHARED_MEMORY = "shared memory is not offered; send the data in the request"
#: Parameters of a whole request, with what to do instead.
REQUEST: Mapping[str, str] = {
    "sequence_id": _STATELESS,
    "sequence_start": _STATELESS,
    "sequence_end": _STATELESS,
}
#: Parameters of one input or output.
TENSOR: Mapping[str, str] = {
    "shared_memory_region": _NO_SHARED_MEMORY,
    "shared_memory_offset": _NO_SHARED_MEMORY,
    "shared_memory_byte_size": _NO_SHARED_MEMORY,
    "classification": "classification is not offered; ask for the output as it is",
}


def refuse(parameters: Mapping[str, Any], names: Mapping[str, str], what: str) -> None:
    """Raise `MalformedRequest` for the first parameter of ``names`` that asks for something.

    0, false, null and the empty string ask for nothing: they are the protocol's defaults, which clients send.
    """
    if not parameters:
        return
    for name, reason in names.items():
        if parameters.get(name):
            raise MalformedRequest(f"{what}: {reason} (parameter {name!r})")
