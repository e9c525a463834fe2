"""Secrets that people put into policy files, and how they stay out of errors, logs and arguments. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

_KEY = re.compile(r"hr_[A-Za-z0-9_-]{8,}")
#: Up to the last @ before a space: a password may hold one itself.
_USER = re.compile(r"(?<=://)\S*@")
_PASSWORD = re.compile(r"(?i)(?<=password=)[^&\s'\"]+")
HIDDEN = "(hidden)"
#: What to do with a URL that holds a password.
URL_ELSEWHERE = (
    "it holds a password, and Ray keeps and shows what deployments are given; put the URL into a file and "
    "write file:/path/to/it, or into an environment variable of Ray's processes and write env:NAME"
)


def may_be_secret(place: Sequence[str | int]) -> bool:
    """Whether a value at this place of a policy must not be shown: API keys and all about the queue's server,
    also where either stands a level too high."""
    if place[:1] == ("redis",):
        return True
    return place[:1] == ("tenants",) and (len(place) < 3 or place[2] == "keys")


def redacted(text: str) -> str:
    """The text without what looks like an API key or like the user and password of a URL."""
    text = _KEY.sub(f"hr_{HIDDEN}", text)
    return _PASSWORD.sub(HIDDEN, _USER.sub(f"{HIDDEN}@", text))


def holds_password(url: str) -> bool:
    """Whether a queue's URL has a password in it, also one whose characters make the URL unreadable."""
    _, _, rest = url.partition("://")
    return ":" in rest.rpartition("@")[0] or "password=" in rest.lower()
