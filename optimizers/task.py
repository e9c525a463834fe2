"""What is to be optimized: a trained model, data to learn from, data to judge by, and the judge.

A :class:`Task` is the input of the pipeline, a :class:`TaskModel` what travels through its passes, and a
:class:`PassContext` what a pass may use on the way. Data for training and calibration (``train``), for
choosing between candidates (``validation``) and for the figures that are reported (``test``) are
kept apart; a pass never sees ``test``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from optimizers.artifact import Setting
from optimizers.tensors import Array, Tensors, TensorSpec

Predict = Callable[[Tensors], Tensors]


@dataclass(frozen=True)
class TaskModel:
    """A model on its way through the passes: a value of some ``form``, and what it takes and gives.

    ``form`` is one of :data:`optimizers.formats.forms.FORMS`: ``torch`` (``nn.Module`` in eval mode),
    ``onnx`` (``onnx.ModelProto``), ``sklearn`` (fitted estimator), ``openvino`` (``openvino.Model``),
    ``tree``, ``rules``.
    ``inputs`` and ``outputs`` are those of the network as it is deployed. A torch classifier gives
    logits ``[rows, classes]`` while it is trained and passed on; ``head="classifier"`` says that its
    deployed form gives ``label`` INT64 [-1] and ``scores`` FP32 [-1, classes] (softmax) instead.
    ``architecture`` names the entry of ``Task.architectures`` that builds an untrained ``value``.
    ``notes`` collect what passes have to report (``sparsity``, ``interpretability``, ...);
    ``settings`` what the runtime must be told.
    """

    form: str
    value: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    head: str = ""
    architecture: str = "original"
    notes: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def becomes(self, value: Any, *, form: str | None = None, **notes: Any) -> TaskModel:
        """The model after a pass: a new value, perhaps of another form, and more notes."""
        return replace(self, value=value, form=form or self.form, notes={**self.notes, **notes})


@dataclass(frozen=True)
class Dataset:
    """Rows of named inputs and, where known, one target per row."""

    inputs: Tensors
    targets: Array | None = None

    def __len__(self) -> int:
        return int(next(iter(self.inputs.values())).shape[0])

    def take(self, rows: int) -> Dataset:
        """The first ``rows`` rows, or all where there are fewer."""
        return self.slice(0, rows)

    def slice(self, start: int, stop: int) -> Dataset:
        inputs = {name: array[start:stop] for name, array in self.inputs.items()}
        return Dataset(inputs, None if self.targets is None else self.targets[start:stop])

    def select(self, index: Array) -> Dataset:
        """The rows of an integer index, in its order."""
        inputs = {name: array[index] for name, array in self.inputs.items()}
        return Dataset(inputs, None if self.targets is None else self.targets[index])

    def batches(self, rows: int) -> Iterator[Dataset]:
        """Consecutive slices of ``rows`` rows; the last may be shorter."""
        for start in range(0, len(self), rows):
            yield self.slice(start, start + rows)


@dataclass(frozen=True)
class Metric:
    """Quality of a model on a data set: ``evaluate(predict, data)``, higher is better."""

    name: str
    evaluate: Callable[[Predict, Dataset], float]


@dataclass(frozen=True)
class Preprocess:
    """Turns an artifact's inputs into the network's, and travels in the artifact as files.

    ``settings`` go into the manifest's ``preprocess`` section, ``files`` into its folder.
    """

    apply: Predict
    inputs: tuple[TensorSpec, ...]
    settings: Mapping[str, Setting]
    files: Mapping[str, Path]


@dataclass(frozen=True)
class Task:
    """A trained model with its data and its judge.

    ``fidelity(outputs, original_outputs)`` is agreement of two answers to the same rows, 1 at best.
    ``architectures`` build untrained modules by name, so that a module can be stored as its weights
    alone; ``original`` is the trained model's own.
    ``digest`` identifies model and data for the cache: equal digests mean equal results.
    """

    name: str
    model: TaskModel
    train: Dataset
    validation: Dataset
    test: Dataset
    metric: Metric
    fidelity: Callable[[Tensors, Tensors], float]
    digest: str
    architectures: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    feature_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    preprocess: Preprocess | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the artifact takes: the preprocessing's inputs, or the network's."""
        return self.preprocess.inputs if self.preprocess else self.model.inputs

    def network_inputs(self, inputs: Tensors) -> Tensors:
        """The network's inputs for a batch of the artifact's; what it does not take is left out."""
        if not self.preprocess:
            return inputs
        given = self.preprocess.apply(inputs)
        return {spec.name: given[spec.name] for spec in self.model.inputs if spec.name in given}


@dataclass(frozen=True)
class PassContext:
    """What a pass may use.

    ``teacher`` answers network inputs as the original does (deployed form); ``runtime`` is the one
    that the variant names, or empty.
    """

    task: Task
    teacher: Predict
    seed: int = 0
    threads: int = 1
    runtime: str = ""
    progress: Callable[[str], None] = lambda message: None

    def calibration(self, rows: int, batch: int) -> Iterator[Tensors]:
        """Network inputs of ``rows`` training rows, in batches."""
        train = self.task.train
        if rows < len(train):
            # Spread over the set: its order may mean something.
            train = train.select(np.linspace(0, len(train) - 1, rows).astype(np.int64))
        for part in train.batches(batch):
            yield self.task.network_inputs(part.inputs)


def accuracy(predict: Predict, data: Dataset, *, output: str = "label", batch: int = 256) -> float:
    """Share of rows whose ``output`` equals the target."""
    if data.targets is None:
        raise ValueError("accuracy needs targets")
    right = sum(int(np.sum(predict(part.inputs)[output] == part.targets)) for part in data.batches(batch))
    return right / len(data)


def label_agreement(outputs: Tensors, original: Tensors) -> float:
    """Fidelity of classifiers: share of rows with the same ``label``."""
    return float(np.mean(outputs["label"] == original["label"]))
