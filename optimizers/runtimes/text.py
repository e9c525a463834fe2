"""Strings in: an artifact may carry its tokenizer, and this turns text into what the network takes.

The manifest's ``preprocess`` section: ``kind`` (``tokenizer``), ``file`` (a Hugging Face
``tokenizer.json``: data, no code), ``input`` (name of the BYTES [-1] input), ``max_tokens``, and, for a
tokenizer that does not tell how to pad, ``pad_id``. With ``group_call_tokens`` in its ``settings``, a
batch runs in groups of similar length (:mod:`optimizers.runtimes.grouping`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from optimizers.artifact import Artifact, ArtifactMalformed
from optimizers.runner import Runner
from optimizers.runtimes.grouping import by_length
from optimizers.tensors import Array, Tensors, TensorSpec, concat

#: Every input of a network that text gives.
GIVEN = ("input_ids", "attention_mask", "token_type_ids")

#: What tokenizers of common families call their padding.
_PADDING = ("[PAD]", "<pad>", "<PAD>", "<|padding|>", "<|pad|>")


class Tokens(NamedTuple):
    """A row's token ids, and the segment that each belongs to."""

    ids: Sequence[int]
    types: Sequence[int]


class TextEncoder:
    """UTF-8 strings to :data:`GIVEN`, all INT64 [rows, tokens]; a network takes those that it has.

    Rows are cut off at ``max_tokens`` and padded to the longest of the batch, as the tokenizer says or
    with ``pad_id``: models of the RoBERTa family count positions by it. Strings are encoded one by one:
    the library's own batch call would take threads that belong to others.
    """

    def __init__(self, path: Path, name: str, max_tokens: int, pad_id: int | None = None) -> None:
        self.name = name
        self._tokenizer = Tokenizer.from_file(str(path))
        padding = self._tokenizer.padding or {}
        named = (self._tokenizer.token_to_id(token) for token in _PADDING)
        known = next((number for number in named if number is not None), 0)
        self._pad_id = padding.get("pad_id", known) if pad_id is None else pad_id
        self._pad_type = padding.get("pad_type_id", 0)
        self._left = padding.get("direction") == "left"
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)

    def apply(self, batch: Tensors) -> Tensors:
        return self.pad(self.encode(batch))

    def encode(self, batch: Tensors) -> list[Tokens]:
        """Each row's tokens, not yet padded."""
        found = (self._tokenizer.encode(_text(item)) for item in batch[self.name].ravel())
        return [Tokens(row.ids, row.type_ids) for row in found]

    def pad(self, rows: Sequence[Tokens]) -> Tensors:
        """Rows of tokens as network inputs, padded to the longest (and to one token, where all are empty)."""
        shape = (len(rows), max([1, *(len(row.ids) for row in rows)]))
        ids: Array = np.full(shape, self._pad_id, dtype=np.int64)
        mask: Array = np.zeros(shape, dtype=np.int64)
        types: Array = np.full(shape, self._pad_type, dtype=np.int64)
        for i, row in enumerate(rows):
            count = len(row.ids)
            place = slice(shape[1] - count, None) if self._left else slice(count)
            ids[i, place], mask[i, place], types[i, place] = row.ids, 1, row.types
        return dict(zip(GIVEN, (ids, mask, types), strict=True))


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
        groups = by_length([len(row.ids) for row in rows], self._call_tokens)
        if len(groups) == 1:
            return self._answer(rows)
        answers = concat([self._answer([rows[i] for i in group]) for group in groups])
        back = np.argsort(np.concatenate(groups))
        return {name: value[back] for name, value in answers.items()}

    def _answer(self, rows: Sequence[Tokens]) -> Tensors:
        padded = self._encoder.pad(rows)
        answer: Tensors = self._network.run({k: v for k, v in padded.items() if k in self._taken})
        return answer

    def close(self) -> None:
        self._network.close()


def open_runner(artifact: Artifact, network: Runner) -> TextRunner:
    """``network`` behind the tokenizer that the manifest describes.

    Raises :class:`ArtifactMalformed` where that cannot be read, or gives not all that the network takes.
    """
    settings = artifact.manifest.preprocess
    if settings.get("kind") != "tokenizer":
        raise ArtifactMalformed(f"{artifact.path}: unknown preprocess kind {settings.get('kind')!r}")
    lacking = [name for name in ("file", "input", "max_tokens") if name not in settings]
    if lacking:
        raise ArtifactMalformed(f"{artifact.path}: its preprocess section lacks {lacking}")
    path = artifact.file(str(settings["file"]))
    try:
        pad_id = settings.get("pad_id")
        encoder = TextEncoder(
            path,
            str(settings["input"]),
            int(settings["max_tokens"]),
            None if pad_id is None else int(pad_id),
        )
    except Exception as error:  # the tokenizers library raises bare Exception for a bad file
        raise ArtifactMalformed(f"{path}: not a tokenizer file: {error}") from error
    taken: frozenset[str] = getattr(network, "network_inputs", frozenset())
    if taken - set(GIVEN):
        raise ArtifactMalformed(
            f"{artifact.path}: the network takes {sorted(taken)}, of which text gives {', '.join(GIVEN)}; "
            f"export it without {', '.join(sorted(taken - set(GIVEN)))}"
        )
    call_tokens = int(artifact.manifest.settings.get("group_call_tokens", 0))
    if any(-1 in spec.shape[1:] for spec in artifact.manifest.outputs):
        call_tokens = 0  # outputs by token: those of groups that are padded apart do not fit together
    return TextRunner(encoder, network, artifact.manifest.inputs, call_tokens)
