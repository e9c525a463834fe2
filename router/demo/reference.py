"""What each variant answers for each image of the test split, so that the server's answers can be checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from optimizers import artifact
from optimizers.runner import load
from optimizers.tensors import Array


@dataclass(frozen=True, slots=True)
class Reference:
    """Images FP32 [n, 1, 8, 8], their true labels INT64 [n], and each variant's own labels and scores."""

    images: Array
    truth: Array
    labels: dict[str, Array]
    scores: dict[str, Array]
    tolerance: dict[str, float]

    def matches(self, variant: str | None, index: Array, labels: Array, scores: Array) -> Array:
        """Per row, whether it is what ``variant`` answers for the image of ``index``; BOOL [rows].

        Scores may differ by the tolerance (a row's batch may change its last bits); labels may differ
        only where the two best scores are closer than that.
        """
        if variant not in self.scores or scores.shape != (len(index), self.scores[variant].shape[1]):
            return np.zeros(len(index), dtype=bool)
        want, tolerance = self.scores[variant][index], self.tolerance[variant]
        near = np.abs(scores - want).max(axis=1) <= tolerance
        top = np.sort(want, axis=1)
        tied = top[:, -1] - top[:, -2] <= 2 * tolerance
        matching: Array = near & ((labels == self.labels[variant][index]) | tied)
        return matching


def compute(folder: Path, variants: Iterable[str], images: Array, truth: Array) -> Reference:
    """Run every variant over all images, in this process and apart from the server."""
    labels, scores, tolerance = {}, {}, {}
    for name in variants:
        opened = artifact.read(folder / name)
        runner = load(opened)
        try:
            outputs = runner.run({"image": images})
        finally:
            runner.close()
        labels[name], scores[name] = outputs["label"], outputs["scores"]
        # The manifest measured it over a few batches; a server forms many more.
        tolerance[name] = max(4 * opened.manifest.tolerance, 1e-5)
    return Reference(images, truth, labels, scores, tolerance)
