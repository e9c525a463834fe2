"""Runs trees and rule lists with numpy alone: no scikit-learn, and no code in the weights.

A tree is a ``.npz`` of plain arrays, read with ``allow_pickle=False``; a rule list is JSON text.
Both stand beside a ``.txt`` for people. Their output of integer datatype is the class index, their
output of floating datatype the scores of all classes; either may be absent.
"""

from __future__ import annotations

import io
import zipfile

import numpy as np
import orjson

from optimizers.artifact import Artifact, ArtifactMalformed
from optimizers.runner import DeviceMissing
from optimizers.runtimes.decision_tree import Feature, Tree, TreeError
from optimizers.runtimes.rule_list import RuleList
from optimizers.tensors import Array, Tensors, TensorSpec

_ARRAYS = ("feature", "threshold", "children", "scores")


def tree_bytes(tree: Tree) -> bytes:
    """The contents of a tree's ``.npz``; equal trees give equal bytes."""
    names = orjson.dumps({"features": [f.to_json() for f in tree.features], "classes": tree.classes})
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        names=np.frombuffer(names, dtype=np.uint8),
        feature=tree.feature,
        threshold=tree.threshold,
        children=tree.children,
        scores=tree.scores,
    )
    return stream.getvalue()


def read_tree(content: bytes) -> Tree:
    """The tree of :func:`tree_bytes`. Raises :class:`TreeError` for anything else."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            names = orjson.loads(arrays["names"].tobytes())
            parts = {name: arrays[name] for name in _ARRAYS}
        features = tuple(Feature.from_json(f) for f in names["features"])
        return Tree(**parts, features=features, classes=tuple(str(c) for c in names["classes"]))
    except (KeyError, TypeError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise TreeError(f"not a tree: {error}") from None


def rules_bytes(rules: RuleList) -> bytes:
    """The contents of a rule list's JSON file."""
    return orjson.dumps(rules.to_json(), option=orjson.OPT_INDENT_2)


def read_rules(content: bytes) -> RuleList:
    """The list of :func:`rules_bytes`. Raises :class:`TreeError` for anything else."""
    try:
        return RuleList.from_json(orjson.loads(content))
    except orjson.JSONDecodeError as error:
        raise TreeError(f"not a rule list: {error}") from None


class TreeRunner:
    """A loaded tree or rule list; ``run`` flattens its one input to ``[n, features]``."""

    def __init__(
        self, model: Tree | RuleList, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        if len(inputs) != 1:
            raise TreeError(f"a tree or rule list takes one input, not {len(inputs)}")
        self._model = model
        self._inputs, self._outputs = inputs, outputs
        self._answers = {spec.name: self._answer(spec) for spec in outputs}

    def _answer(self, spec: TensorSpec) -> Array:
        if spec.datatype.startswith(("INT", "UINT")):
            answers: Array = self._model.scores.argmax(axis=1).astype(spec.dtype)
            return answers
        if spec.datatype.startswith("FP"):
            return self._model.scores.astype(spec.dtype)
        raise TreeError(
            f"output {spec.name!r}: a tree gives INT64 classes or FP32 scores, not {spec.datatype}"
        )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, batch: Tensors) -> Tensors:
        decided = self._model.apply(batch[self._inputs[0].name])
        return {name: answers[decided] for name, answers in self._answers.items()}

    def close(self) -> None:
        """Nothing to give back."""


def open_runner(artifact: Artifact, *, threads: int, device: str) -> TreeRunner:
    """A runner for a ``trees`` or ``rules`` artifact; one thread, whatever ``threads`` says.

    Raises :class:`DeviceMissing` for any device but the CPU, and :class:`ArtifactMalformed` for
    weights that are no tree or rule list, or not one of the manifest's inputs and outputs.
    """
    if device != "cpu":
        raise DeviceMissing(f"{artifact.path}: trees and rules run on the CPU only, not on {device!r}")
    weights = artifact.weights()
    try:
        content = weights.read_bytes()
        model = read_rules(content) if artifact.manifest.runtime == "rules" else read_tree(content)
        return TreeRunner(model, artifact.manifest.inputs, artifact.manifest.outputs)
    except TreeError as error:
        raise ArtifactMalformed(f"{weights}: {error}") from None
