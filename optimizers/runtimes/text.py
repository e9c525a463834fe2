"""Strings in: an artifact may carry its tokenizer, and this turns text into what the network takes.

The manifest's ``preprocess`` section: ``kind`` (``tokenizer``), ``file`` (a Hugging Face
``tokenizer.json``: data, no code), ``input`` (name of the BYTES [-1] input), ``max_tokens``. With
``group_call_tokens`` in its ``settings``, a batch runs in groups of similar length
(:mod:`optimizers.grouping`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from optimizers.artifact import Artifact, ArtifactMalformed
from optimizers.grouping import by_length
from optimizers.runner import Runner
from optimizers.tensors import Array, Tensors, TensorSpec, concat


class TextEncoder:
    """UTF-8 strings to ``input_ids`` and ``attention_mask``, both INT64 [rows, tokens].

    Rows are cut off at ``max_tokens`` and padded to the longest of the batch. Strings are encoded
    one by one: the library's own batch call would take threads that belong to others.
    """

    def __init__(self, path: Path, name: str, max_tokens: int) -> None:
        self.name = name
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)

    def apply(self, batch: Tensors) -> Tensors:
        return self.pad(self.encode(batch))

    def encode(self, batch: Tensors) -> list[list[int]]:
        """Token ids of each row, not yet padded."""
        encode = self._tokenizer.encode
        return [encode(_text(item)).ids for item in batch[self.name].ravel()]

    def pad(self, rows: Sequence[Sequence[int]]) -> Tensors:
        """Rows of token ids as network inputs, padded to the longest."""
        width = max(len(ids) for ids in rows)
        ids: Array = np.zeros((len(rows), width), dtype=np.int64)
        mask: Array = np.zeros((len(rows), width), dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}


def _text(item: Any) -> str:
    # A byte that is no UTF-8 is the sender's; the tokenizer has a token for what it does not know.
    return item.decode("utf-8", errors="replace") if isinstance(item, bytes) else str(item)


class TextRunner:
    """A network behind its tokenizer. ``call_tokens`` above 0 runs a batch in groups (see the module)."""

    def __init__(
        self,
        encoder: TextEncoder,
        network: Any,
        inputs: tuple[TensorSpec, ...],
        call_tokens: int = 0,
    ) -> None:
        self.inputs = inputs
        self.outputs: tuple[TensorSpec, ...] = network.outputs
        self._encoder, self._network, self._call_tokens = encoder, network, call_tokens
        self._taken: frozenset[str] = network.network_inputs

    def run(self, batch: Tensors) -> Tensors:
        rows = self._encoder.encode(batch)
        if not self._call_tokens or len(rows) == 1:
            return self._answer(rows)
        groups = by_length([len(ids) for ids in rows], self._call_tokens)
        if len(groups) == 1:
            return self._answer(rows)
        answers = concat([self._answer([rows[i] for i in group]) for group in groups])
        back = np.argsort(np.concatenate(groups))
        return {name: value[back] for name, value in answers.items()}

    def _answer(self, rows: Sequence[Sequence[int]]) -> Tensors:
        padded = self._encoder.pad(rows)
        answer: Tensors = self._network.run({k: v for k, v in padded.items() if k in self._taken})
        return answer

    def close(self) -> None:
        self._network.close()


def open_runner(artifact: Artifact, network: Runner) -> TextRunner:
    """``network`` behind the tokenizer that the manifest describes."""
    settings = artifact.manifest.preprocess
    if settings.get("kind") != "tokenizer":
        raise ArtifactMalformed(f"{artifact.path}: unknown preprocess kind {settings.get('kind')!r}")
    path = artifact.file(str(settings.get("file")))
    try:
        encoder = TextEncoder(path, str(settings["input"]), int(settings["max_tokens"]))
    except Exception as error:  # the tokenizers library raises bare Exception for a bad file
        raise ArtifactMalformed(f"{path}: not a tokenizer file: {error}") from error
    call_tokens = int(artifact.manifest.settings.get("group_call_tokens", 0))
    return TextRunner(encoder, network, artifact.manifest.inputs, call_tokens)
