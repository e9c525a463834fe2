"""The examples in docstrings, run as they stand: like doctest, and with ``await`` as in asyncio's REPL."""

from __future__ import annotations

import ast
import contextlib
import doctest
import inspect
import io
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Described:
    """A public object by its dotted name, and the examples in its docstring."""

    name: str
    examples: Sequence[doctest.Example]


def described(name: str, target: Any) -> Described:
    return Described(name, doctest.DocTestParser().get_examples(inspect.getdoc(target) or "", name))


def public(target: type) -> Iterator[Described]:
    """A class and its public methods and properties, those that it inherits from its own package too."""
    yield described(target.__name__, target)
    for name, member in inspect.getmembers(target):
        home = inspect.unwrap(member.fget if isinstance(member, property) and member.fget else member)
        if not name.startswith("_") and isinstance(home, FunctionType) and "router" in home.__module__:
            yield described(f"{target.__name__}.{name}", member)


async def check(item: Described, names: Mapping[str, Any], replace: Mapping[str, str]) -> list[str]:
    """Run the examples one after the other with ``names`` known; gives what differed from what they say.

    ``replace`` is put in for parts of the source: the address that an example names, say.
    """
    scope, wrong = dict(names), []
    for example in item.examples:
        source = example.source
        for old, new in replace.items():
            source = source.replace(old, new)
        got = await _run(source, item.name, scope)
        want = example.want
        if example.exc_msg is not None:  # only the last line of a trace is compared
            want, got = example.exc_msg, re.sub(r"(?s)^Traceback.*\n(?=\S)", "", got)
        if not doctest.OutputChecker().check_output(want, got, _OPTIONS):
            wrong.append(f"{item.name}: {example.source.strip()}\n  says  {want!r}\n  gives {got!r}")
    return wrong


async def _run(source: str, name: str, scope: dict[str, Any]) -> str:
    """What a REPL would print for one statement."""
    printed = io.StringIO()
    code = compile(source, f"<{name}>", "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    with contextlib.redirect_stdout(printed):
        try:
            value = eval(code, scope)  # noqa: S307 -- our own docstrings
            if inspect.isawaitable(value):
                await value
        except Exception as error:
            printed.write("Traceback (most recent call last):\n")
            printed.write("".join(traceback.format_exception_only(error)))
    return printed.getvalue()
