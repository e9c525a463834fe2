"""Models that are fitted scikit-learn estimators."""

from __future__ import annotations

from typing import Any

import numpy as np

from optimizers.formats.errors import PassError, typed
from optimizers.task import TaskModel
from optimizers.tensors import TensorSpec


def from_sklearn(estimator: Any, features: int, *, name: str = "features") -> TaskModel:
    """A fitted scikit-learn estimator over FP32 ``[-1, features]``.

    A classifier with integer classes gives ``label`` INT64 [-1] and, where it has probabilities,
    ``scores`` FP32 [-1, classes]; a regressor gives ``value`` FP32 [-1, values], a
    clustering ``label``. Raises :class:`PassError` for one that is not fitted, has no ``predict`` or
    takes other rows.
    """
    kind = type(estimator).__name__
    inputs = (TensorSpec(name, "FP32", (-1, features)),)
    with typed(
        f"{kind} does not predict rows of {features} features", "give a fitted classifier or regressor"
    ):
        answer = np.asarray(estimator.predict(np.zeros((1, features), dtype=np.float32)))
        classes = getattr(estimator, "classes_", None)
    if classes is None:
        cluster = answer.dtype.kind in "iu"
        output = (
            TensorSpec("label", "INT64", (-1,)) if cluster else TensorSpec("value", "FP32", (-1, answer.size))
        )
        return TaskModel("sklearn", estimator, inputs, (output,))
    if answer.ndim > 1 or isinstance(classes, list):
        raise PassError(f"{kind} gives several labels per row; fit one classifier per label")
    classes = np.asarray(classes)
    if classes.dtype.kind not in "iu":
        raise PassError(
            f"classes {classes.tolist()[:5]} are not numbers: fit it on class numbers and keep the "
            "names in Task.class_names"
        )
    outputs: tuple[TensorSpec, ...] = (TensorSpec("label", "INT64", (-1,)),)
    if hasattr(estimator, "predict_proba"):
        outputs = (*outputs, TensorSpec("scores", "FP32", (-1, len(classes))))
    return TaskModel("sklearn", estimator, inputs, outputs)
