"""API keys: how one is made, and what of it a policy file keeps. The standard library alone.

Keys are random and long, so that a plain SHA-256 keeps them: there is no dictionary to try.
"""

from __future__ import annotations

import hashlib
import secrets

#: Longer than any key that is made here; more is not hashed.
MAX_KEY_CHARS = 512
_PREFIX = "hr_"


def new_key() -> str:
    """A fresh API key: 256 random bits behind a prefix that secret scanners can look for."""
    return _PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str | bytes) -> str:
    """A key as it stands in a policy file."""
    return "sha256:" + hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()
