"""A variant in memory, as online replicas and batch workers run it, with a row that is known to run."""

from __future__ import annotations

import contextlib
import logging

from optimizers import artifact
from optimizers.profile import LatencyProfile
from optimizers.runner import RunnerError, load
from optimizers.runtimes.example_row import example_of, run_rows, try_out
from optimizers.tensors import Tensors, TensorSpec

logger = logging.getLogger("ray.serve")


class LoadedVariant:
    """One variant, loaded and tried out. ``artifact_path`` is its folder.

    Raises :class:`optimizers.artifact.ArtifactError` and :class:`optimizers.runner.RunnerError`.
    """

    def __init__(self, artifact_path: str, threads: int) -> None:
        stored = artifact.read(artifact_path)
        self.profile: LatencyProfile = stored.manifest.profile
        self._runner = load(stored, threads=threads)
        example = example_of(stored)
        try:
            example_runs = try_out(self._runner, example)
        except RunnerError as error:
            self._runner.close()
            raise type(error)(f"{artifact_path}: {error}") from error
        #: A row that has run here. While there is none, a failure says nothing of the model.
        self._known_row: Tensors | None = example.row if example_runs else None
        if not example_runs:
            logger.warning(
                "%s: the model does not take a row of zeros, and the artifact has no example row; make it "
                "again with `hybrid-router optimize`",
                artifact_path,
            )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._runner.inputs

    def run(self, batch: Tensors) -> Tensors:
        """The outputs of a batch. Raises what the model raises, and where its outputs have other rows
        :class:`optimizers.runtimes.example_row.RowsNotKept`."""
        outputs = run_rows(self._runner, batch)
        if self._known_row is None:
            row = {name: array[:1].copy() for name, array in batch.items()}
            # Alone as well: what is padded to the others' size may not be taken without them.
            with contextlib.suppress(Exception):
                run_rows(self._runner, row)
                self._known_row = row
        return outputs

    def probe(self) -> None:
        """Run the row that is known to be taken, if there is one: what it raises is the model's fault."""
        if self._known_row is not None:
            run_rows(self._runner, self._known_row)

    def close(self) -> None:
        self._runner.close()
