"""Errors of making a variant, and how what a library raises becomes one of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from optimizers.artifact import ArtifactError
from optimizers.files.problems import PlacedError
from optimizers.runner import RunnerError

#: Characters of a library's message that are shown; a compiler's may be pages.
_MOST_SAID = 400


class RecipeError(PlacedError):
    """A recipe that cannot be carried out. The message says where, what, and how to fix it."""

    def __init__(self, text: str, *place: str | int, within: str = "") -> None:
        super().__init__([(place, text)], within)


class PassError(RuntimeError):
    """A pass that cannot be applied to this model. The message says which, why, and what would do.

    ::

        PassError
        |- NotAvailable     needs a package or a device that is not on this machine: the variant is skipped
        |- FormError        the model cannot be brought into the form that the pass takes
    """


class NotAvailable(PassError):
    """A package or a device is not here; nothing is wrong with the recipe. The variant is skipped."""


class FormError(PassError):
    """There is no way from the model's form to one that is needed."""


@contextmanager
def typed(what: str, advice: str = "") -> Iterator[None]:
    """What a library raises inside becomes a :class:`PassError`: ``what`` failed, why, what would do."""
    try:
        yield
    except (PassError, RecipeError, ArtifactError, RunnerError):
        raise
    except ModuleNotFoundError as error:
        raise NotAvailable(f"{what} needs the Python package {error.name!r}") from error
    except Exception as error:  # libraries have no common base for what they raise
        raise PassError(f"{what}: {said(error)}{f'; {advice}' if advice else ''}") from error


def said(error: BaseException) -> str:
    """What an exception says, as one line that can stand in a sentence."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src/\S+ .*?\) (?=[A-Z])", "", text)
    text = " ".join(text.split())
    shown = text if len(text) <= _MOST_SAID else text[:_MOST_SAID] + " ..."
    return f"{type(error).__name__}: {shown}" if shown else type(error).__name__
