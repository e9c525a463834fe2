"""From the name in a recipe to a task that is whole: imported, called, and checked before work begins.

A task is a user's own code. What it raises, and what it gives that the passes could not use, is said
here in one sentence, instead of by whichever library would meet it first.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from optimizers.formats.errors import PassError, RecipeError, said
from optimizers.task import Dataset, Task
from optimizers.tensors import TensorError, check

#: Forms that an original may have.
FORMS = ("torch", "onnx", "sklearn", "openvino")


def resolve(name: str) -> Any:
    """The object that ``module:attribute`` names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def resolve_task(name: str) -> Callable[..., Task]:
    """The function that ``module:function`` names: ``(workdir, progress, data=folder) -> Task``.

    Raises :class:`RecipeError`.
    """
    module, _, attribute = name.partition(":")
    try:
        function = resolve(name)
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"task: {name!r} cannot be imported ({error}); install what is missing, or put the folder of "
            "your own module on PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise RecipeError(f"task: {module!r} has no {attribute!r} ({error})") from error
    except Exception as error:  # importing a module runs it
        raise RecipeError(f"task: {name!r} cannot be imported ({said(error)}{_where(error)})") from error
    if not callable(function):
        raise RecipeError(f"task: {name!r} is a {type(function).__name__}, not a function that gives a Task")
    return function  # type: ignore[no-any-return]


def load_task(name: str, workdir: Path, progress: Callable[[str], None], data: str = "") -> Task:
    """The task that ``module:function`` gives for a ``data`` folder (empty: none).

    Raises :class:`RecipeError`; what the task's code raises of this package's own errors passes through.
    """
    function = resolve_task(name)
    options = {"data": Path(data)} if data else {}
    try:
        task = function(workdir, progress, **options)
    except (PassError, RecipeError):
        raise
    except Exception as error:
        hint = "; does it take the argument data?" if data and isinstance(error, TypeError) else ""
        raise RecipeError(f"task: {name} raised {said(error)}{_where(error)}{hint}") from error
    if not isinstance(task, Task):
        raise RecipeError(f"task: {name} gave a {type(task).__name__}, not an optimizers.task.Task")
    return task


def _where(error: Exception) -> str:
    """The file and line that raised, to find it without a trace."""
    if isinstance(error, SyntaxError):
        return ""  # says so itself
    frames = traceback.extract_tb(error.__traceback__)
    return f", at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def check_task(task: Task) -> None:
    """Raise :class:`RecipeError` unless the task's data is what its model takes, and one row runs through.

    Only the first rows go through the preprocessing; every data set's names, types and shapes are read.
    """
    where = f"task {task.name!r}"
    if task.model.form not in FORMS:
        raise RecipeError(f"{where}: its model has form {task.model.form!r}; known: {', '.join(FORMS)}")
    for what, specs in (("inputs", task.model.inputs), ("outputs", task.model.outputs)):
        names = [spec.name for spec in specs]
        if not names or len(set(names)) < len(names):
            raise RecipeError(f"{where}: its model's {what} are {names}; name each, and at least one")
    for name in ("train", "validation", "test"):
        data: Any = getattr(task, name)
        if not isinstance(data, Dataset) or not isinstance(data.inputs, Mapping) or not data.inputs:
            raise RecipeError(f"{where}: {name} must be an optimizers.task.Dataset with arrays by input name")
        if name == "validation" and not len(data):
            continue  # only searches and scans need it
        _check_data(f"{where}: {name}", data, task)
    try:
        given = task.network_inputs(task.train.take(2).inputs)
        check(given, task.model.inputs)
    except TensorError as error:
        raise RecipeError(f"{where}: its preprocessing does not fit the model: {error}") from error
    except Exception as error:
        raise RecipeError(f"{where}: its preprocessing raised {said(error)}{_where(error)}") from error


def _check_data(where: str, data: Dataset, task: Task) -> None:
    try:
        rows = check(data.inputs, task.inputs)
    except TensorError as error:
        raise RecipeError(f"{where}: {error}") from error
    if data.targets is not None and len(data.targets) != rows:
        raise RecipeError(f"{where}: {len(data.targets)} targets for {rows} rows")
