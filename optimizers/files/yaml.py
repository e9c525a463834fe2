"""The one reader of YAML: a file becomes a checked value, or errors with file, line, key and the fix.

A :class:`FileKind` says what a file holds, as a pydantic model or a dataclass, and what of it is secret.
Checks of its own raise :class:`~optimizers.files.problems.PlacedError`, which gets its line here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import orjson
import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from optimizers.files.problems import Place, PlacedError, hint, nearest, path_of
from optimizers.files.text import TextError, read_text

T = TypeVar("T")

HIDDEN = "(hidden)"
#: What pydantic puts between the keys of an error's place.
_NO_KEYS = frozenset({"[key]", "[number]", "[range]"})
_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
_QUOTED = re.compile(r"'[^'<>]{4,}'|\"[^\"<>]{4,}\"")


class FileError(ValueError):
    """A file that cannot be used. ``problems`` holds one line each: file, line, key, and the fix."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class FileKind(Generic[T]):
    """One kind of file: what it holds, and how its errors read.

    ``strict`` refuses text for a number and true or false for 1 or 0. A value at a place for which
    ``is_secret`` holds is never shown, and every problem goes through ``redact``. ``advice`` adds to the
    sentence about a place.
    """

    name: str
    holds: Any
    is_mapping_with: str
    strict: bool = False
    is_secret: Callable[[Place], bool] = lambda place: False
    redact: Callable[[str], str] = lambda text: text
    advice: Callable[[Place], str] = lambda place: ""

    def read(self, path: str | Path) -> T:
        """The value in a file. Raises :class:`FileError`."""
        return self.parse(self.text(path), str(path))

    def text(self, path: str | Path) -> str:
        """The text of a file. Raises :class:`FileError`."""
        try:
            return read_text(Path(path))
        except (OSError, TextError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise FileError([f"{path}: cannot read the {self.name} file: {reason}"]) from None

    def parse(self, text: str, source: str) -> T:
        """The value in a text; ``source`` names it in errors. Raises :class:`FileError`."""
        root, document = self._document(text, source)
        duplicates = [f"{source}:{line}: key {key!r} is given twice" for key, line in _duplicate_keys(root)]
        if duplicates:
            raise FileError([self.redact(line) for line in duplicates])
        if not isinstance(document, dict):
            raise FileError([f"{source}: a {self.name} is a mapping with {self.is_mapping_with}"])
        try:
            value: T = checked(document, self.holds, strict=self.strict)
        except ValidationError as error:
            lines = [self._line(source, root, each) for each in _worth_saying(error, self.holds)]
            raise FileError([self.redact(line) for line in lines]) from None
        return value

    def _document(self, text: str, source: str) -> tuple[yaml.Node | None, Any]:
        try:
            return yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
        except RecursionError:
            problem, where = "lists or mappings are nested hundreds deep", source
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none, such as 2026-13-01
            mark = getattr(error, "problem_mark", None)
            where = f"{source}:{mark.line + 1}" if mark else source
            # What it quotes of the file may be anything.
            problem = _QUOTED.sub(HIDDEN, getattr(error, "problem", None) or " ".join(str(error).split()))
        raise FileError([self.redact(f"{where}: not valid YAML: {problem}")])

    def _line(self, source: str, root: yaml.Node | None, error: Mapping[str, Any]) -> str:
        """One error as ``file:line: key: what is wrong; how to fix it``."""
        place: Place = error["loc"]
        line, path = _locate(root, place)
        return f"{source}:{line}: {path_of(path) or self.name}: {self._sentence(place, error)}"

    def _sentence(self, place: Place, error: Mapping[str, Any]) -> str:
        if error["type"] in _UNKNOWN_KEY:
            return f"unknown key; {hint(str(place[-1]), keys_at(self.holds, place[:-1]))}"
        if error["type"] == "missing":
            return "missing; it must be given"
        advice, given = self.advice(place), error.get("input")
        message = error["msg"].removeprefix("Value error, ") + (f"; {advice}" if advice else "")
        said = self.is_secret(place) or repr(given) in message or error["type"] == "value_error"
        return f"{message}, got {given!r}" if isinstance(given, str | int | float) and not said else message


def checked(value: Any, holds: Any, *, strict: bool = False) -> Any:
    """``value`` as what ``holds`` says. Raises pydantic's ``ValidationError``."""
    adapter: TypeAdapter[Any] = TypeAdapter(holds)
    if not strict:
        return adapter.validate_python(value)
    # pydantic takes a mapping for a dataclass and a list for a tuple in its strict mode only from JSON.
    return adapter.validate_json(
        orjson.dumps(value, default=repr, option=orjson.OPT_NON_STR_KEYS), strict=True
    )


def errors_of(error: ValidationError) -> list[dict[str, Any]]:
    """pydantic's errors, one for each place that is wrong; ``loc`` has the keys and indexes alone."""
    return [each for item in error.errors() for each in _by_place(item)]


def _by_place(item: Any) -> Iterator[dict[str, Any]]:
    loc = tuple(part for part in item["loc"] if part not in _NO_KEYS)
    cause = item.get("ctx", {}).get("error")
    if not isinstance(cause, PlacedError):
        yield {**item, "loc": loc}
        return
    for place, text in cause.problems:
        yield {**item, "loc": (*loc, *place), "msg": text}


def _worth_saying(error: ValidationError, holds: Any) -> list[dict[str, Any]]:
    """A misspelt key is one mistake: that the right one is missing follows from it."""
    errors = errors_of(error)
    intended = {
        (*each["loc"][:-1], nearest(str(each["loc"][-1]), keys_at(holds, each["loc"][:-1])))
        for each in errors
        if each["type"] in _UNKNOWN_KEY
    }
    return [each for each in errors if each["type"] != "missing" or each["loc"] not in intended]


def _duplicate_keys(root: yaml.Node | None) -> Iterator[tuple[str, int]]:
    nodes, visited = [root], set[int]()
    while nodes:
        node = nodes.pop()
        if id(node) in visited:  # an alias
            continue
        visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys: set[str] = set()
            for key, value in node.value:
                if key.value in keys:
                    yield key.value, key.start_mark.line + 1
                keys.add(key.value)
                nodes.append(value)
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value


def _locate(root: yaml.Node | None, place: Place) -> tuple[int, list[str | int]]:
    """The line of the deepest part of ``place`` that stands in the file, and the path up to the next."""
    node, path = root, list[str | int]()
    line = root.start_mark.line + 1 if root else 1
    for part in place:
        child = None
        if isinstance(node, yaml.MappingNode):
            child = next(((k.start_mark, v) for k, v in node.value if k.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            child = (node.value[part].start_mark, node.value[part])
        path.append(part)
        if child is None:
            break
        line, node = child[0].line + 1, child[1]
    return line, path


def keys_at(holds: Any, place: Place) -> list[str]:
    """The keys known at a place of a file that holds ``holds``, from the annotations of its classes.

    A class that is neither a pydantic model nor a dataclass may list its own, in ``known_keys()``.
    """
    here = holds
    for part in place:
        items, members = _inside(here)
        here = items if members is None else members.get(str(part))
    return sorted(_inside(here)[1] or ())


def _inside(annotation: Any) -> tuple[Any, dict[str, Any] | None]:
    """What an annotation's items are, for a mapping or a sequence, or its members by key, for a section."""
    if isinstance(annotation, type):
        if issubclass(annotation, BaseModel):
            return None, {name: field.annotation for name, field in annotation.model_fields.items()}
        if hasattr(annotation, "known_keys"):
            return None, dict(annotation.known_keys())
        if is_dataclass(annotation):
            hints = get_type_hints(annotation, include_extras=True)
            return None, {name: hints[name] for name in annotation.__dataclass_fields__}
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return arguments[1], None
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return arguments[0], None
    for argument in arguments:  # of Annotated[X, ...] and X | None
        items, members = _inside(argument)
        if items is not None or members is not None:
            return items, members
    return None, None
