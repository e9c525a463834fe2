"""Text files as people's editors save them: UTF-8, with a byte order mark or without."""

from __future__ import annotations

from pathlib import Path

#: What some editors put before UTF-8. It is no part of the text.
MARK = b"\xef\xbb\xbf"
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")


class TextError(ValueError):
    """The bytes are not UTF-8; the message is a sentence that says so."""


def check_beginning(head: bytes) -> None:
    """Raises TextError for the beginning of a file in UTF-16 or UTF-32, as some editors save "Unicode"."""
    if head.startswith(_WIDE_MARKS) or b"\x00" in head:
        raise TextError("it is in UTF-16 or UTF-32, or no text at all: save it as UTF-8")


def text_of(data: bytes) -> str:
    """The text without its byte order mark. Raises TextError."""
    check_beginning(data[:64])
    try:
        return data.removeprefix(MARK).decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TextError(f"line {line} is not UTF-8 text: save it as UTF-8") from None


def read_text(path: Path) -> str:
    """The text of a file. Raises OSError or TextError."""
    return text_of(path.read_bytes())
