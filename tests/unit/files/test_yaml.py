"""The one reader of YAML: file, line, key and the nearest known key, and nothing secret."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from optimizers.files.problems import PlacedError, hint
from optimizers.files.yaml import HIDDEN, FileError, FileKind, keys_at


@dataclass(frozen=True)
class Shelf:
    width: int = 1
    books: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.books) > self.width:
            raise PlacedError([(("books", self.width), "full")])


class Room(BaseModel):
    model_config = ConfigDict(extra="forbid")

    shelves: dict[str, Shelf]
    key: str | None = None


ROOM: FileKind[Room] = FileKind(
    name="room",
    holds=Room,
    is_mapping_with="'shelves'",
    strict=True,
    is_secret=lambda place: place == ("key",),
    redact=lambda text: text.replace("sesame", HIDDEN),
    advice=lambda place: "ask the porter" if place == ("key",) else "",
)


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(FileError) as caught:
        ROOM.parse(text, "room.yaml")
    return caught.value.problems


def test_a_good_file_becomes_its_value(tmp_path: Path) -> None:
    path = tmp_path / "room.yaml"
    path.write_text("shelves:\n  left: {width: 2, books: [a, b]}\n")
    assert ROOM.read(path) == Room(shelves={"left": Shelf(2, ("a", "b"))})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("shelvs: {}", "room.yaml:1: shelvs: unknown key; did you mean 'shelves'?"),
        ("shelves: {}\nzzz: 1", "room.yaml:2: zzz: unknown key; known here: key, shelves"),
        (
            "shelves:\n  left:\n    widht: 1",
            "room.yaml:3: shelves.left.widht: unknown key; did you mean 'width'?",
        ),
        ("key: a", "room.yaml:1: shelves: missing; it must be given"),
        (
            "shelves:\n  left: {width: '1'}",
            "room.yaml:2: shelves.left.width: Input should be a valid integer, got '1'",
        ),
        (
            "shelves:\n  left:\n    books:\n    - a\n    - b",
            "room.yaml:5: shelves.left.books.1: full",
        ),
        ("shelves: {}\nkey: a\nshelves: {}", "room.yaml:3: key 'shelves' is given twice"),
        ("shelves: [", "room.yaml:1: not valid YAML: "),
        ("[]", "room.yaml: a room is a mapping with 'shelves'"),
        ("[" * 5000, "room.yaml: not valid YAML: lists or mappings are nested hundreds deep"),
    ],
)
def test_a_mistake_has_its_line_its_key_and_what_was_meant(text: str, problem: str) -> None:
    (line,) = problems(text)
    assert line.startswith(problem)


def test_every_mistake_of_a_file_is_listed() -> None:
    assert len(problems("shelves: {a: {width: x}, b: {books: 3}}\nkee: 1")) == 3


def test_a_secret_is_never_shown_and_advice_stands_with_its_place() -> None:
    (line,) = problems("shelves: {}\nkey: 12345")
    assert line == "room.yaml:2: key: Input should be a valid string; ask the porter"
    (line,) = problems("shelves: {sesame: 1}")
    assert "sesame" not in line and HIDDEN in line
    (line,) = problems("shelves: {a: *sesame_street}")
    assert "sesame" not in line


def test_a_file_that_is_not_there_or_no_text_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "room.yaml"
    with pytest.raises(FileError, match=r"room\.yaml: cannot read the room file: No such file"):
        ROOM.read(path)
    path.write_bytes("shelves: {}".encode("utf-16"))
    with pytest.raises(FileError, match="cannot read the room file: it is in UTF-16"):
        ROOM.read(path)


def test_keys_are_known_at_every_place_of_a_file() -> None:
    holds: Any = Room
    assert keys_at(holds, ()) == ["key", "shelves"]
    assert keys_at(holds, ("shelves", "left")) == ["books", "width"]
    assert keys_at(holds, ("shelves", "left", "width")) == []
    assert hint("bok", ["books"]) == "did you mean 'books'?"
