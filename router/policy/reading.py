"""A policy file becomes one frozen `Policy`, or an error that says where it is wrong and how to mend it.

Reading is the only I/O here. Relative paths count from the working directory.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from router.policy.document import Policy
from router.policy.names import Misnamed
from router.policy.secrets import may_be_secret, redacted, without_quotes


class PolicyError(ValueError):
    """A policy that cannot be used. ``problems`` holds one line each: file, line, key, and the mend."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(redacted(problem) for problem in problems)
        super().__init__("\n".join(self.problems))


#: What pydantic puts between the keys of an error's place.
_NO_KEYS = frozenset({"[key]", "[number]", "[range]"})


class Reading(NamedTuple):
    """A policy and the digest of the very text that it was read from."""

    policy: Policy
    digest: str


def digest_of(text: str) -> str:
    """A policy's name in a word: 12 hex digits of its text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def load(path: str | Path) -> Reading:
    """The policy in a file, read once. Raises `PolicyError` with file, line and key of each problem."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError([unreadable(path, error)]) from None
    return Reading(parse(text, str(path)), digest_of(text))


def read(path: str | Path) -> Policy:
    """The policy in a file. Raises `PolicyError`."""
    return load(path).policy


def unreadable(path: str | Path, error: OSError | UnicodeDecodeError) -> str:
    """The sentence for a policy file that cannot even be read."""
    reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
    return f"{path}: cannot read the policy file: {reason}"


def parse(text: str, source: str = "policy") -> Policy:
    """The policy in a text; ``source`` names it in errors."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: a date that is none, such as 2026-13-01.
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise PolicyError([f"{where}: not valid YAML: {without_quotes(problem)}"]) from None
    duplicates = [f"{source}:{line}: key {key!r} is given twice" for key, line in _duplicate_keys(root)]
    if duplicates:
        raise PolicyError(duplicates)
    if not isinstance(document, dict):
        raise PolicyError([f"{source}: a policy is a mapping with 'models' and 'routes'"])
    try:
        return Policy.model_validate(document)
    except ValidationError as error:
        errors = [each for found in error.errors() for each in _apart(found)]
        misspelt = {_intended(e) for e in errors}
        # A misspelt key is one mistake: that the right one is missing follows from it.
        shown = [e for e in errors if e["type"] != "missing" or tuple(e["loc"]) not in misspelt]
        raise PolicyError([_problem(source, root, e) for e in shown]) from None


def _apart(found: Any) -> Iterator[dict[str, Any]]:
    """One error of pydantic's for each place in the file that is wrong."""
    loc = tuple(part for part in found["loc"] if part not in _NO_KEYS)
    cause = found.get("ctx", {}).get("error")
    if not isinstance(cause, Misnamed):
        yield {**found, "loc": loc}
        return
    for place, text in cause.problems:
        yield {**found, "loc": (*loc, *place), "msg": text}


def _duplicate_keys(root: yaml.Node | None) -> Iterator[tuple[str, int]]:
    nodes, visited = [root], set[int]()
    while nodes:
        node = nodes.pop()
        if id(node) in visited:  # an alias
            continue
        visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if key.value in seen:
                    yield key.value, key.start_mark.line + 1
                seen.add(key.value)
                nodes.append(value)
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value


def _intended(error: Any) -> tuple[Any, ...] | None:
    """The place of the key that an unknown one was probably meant to be."""
    if error["type"] != "extra_forbidden":
        return None
    *parents, key = error["loc"]
    close = difflib.get_close_matches(str(key), _fields_at(parents), n=1)
    return (*parents, close[0]) if close else None


def _problem(source: str, root: yaml.Node | None, error: Any) -> str:
    """One pydantic error as ``file:line: key: what is wrong; how to mend it``."""
    loc = list(error["loc"])
    line, path = _locate(root, loc)
    where = f"{source}:{line}: {'.'.join(map(str, path)) or 'policy'}"
    if error["type"] == "extra_forbidden":
        meant = _intended(error)
        hint = f"did you mean {meant[-1]!r}?" if meant else f"known here: {', '.join(_fields_at(loc[:-1]))}"
        return f"{where}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{where}: missing; it must be given"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    if loc[:1] == ["tenants"] and loc[2:3] == ["keys"]:
        message += "; write the hash that 'hybrid-router key new' prints, never the key"
    if may_be_secret(loc) or repr(given) in message or error["type"] == "value_error":
        return f"{where}: {message}"
    if isinstance(given, str | int | float):
        message += f", got {given!r}"
    return f"{where}: {message}"


def _locate(root: yaml.Node | None, loc: Sequence[Any]) -> tuple[int, list[Any]]:
    """The line of the deepest part of ``loc`` that stands in the file, and the path as keys and indexes."""
    node, path = root, list[Any]()
    line = root.start_mark.line + 1 if root else 1
    for part in loc:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next(((k.start_mark, v) for k, v in node.value if k.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = (node.value[part].start_mark, node.value[part])
        path.append(part)
        if found is None:
            break
        line, node = found[0].line + 1, found[1]
    return line, path


def _fields_at(loc: Sequence[Any]) -> list[str]:
    """The keys known at a place in the policy, found by walking the models' annotations."""
    here: Any = Policy
    for part in loc:
        section = _section_in(here)
        if get_origin(here) in (dict, tuple):  # the part is a name or an index, not a field
            here = section
        else:
            here = section.model_fields[part].annotation if section and part in section.model_fields else None
    section = _section_in(here)
    return sorted(section.model_fields) if section is not None else []


def _section_in(annotation: Any) -> Any:
    """The section class inside ``X | None``, ``tuple[X, ...]`` or ``dict[str, X]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _section_in(inner)
        if found is not None:
            return found
    return None
