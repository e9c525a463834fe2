"""The small MLP as an MLServer model; `tests.benchmarks.peers` writes the settings that name it.

It runs in the peers' own environment, on the same artifact and through the same `optimizers.runner`.
"""

from __future__ import annotations

from typing import Any

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from optimizers import artifact
from optimizers.runner import load


class Mlp(MLModel):  # type: ignore[misc]
    """The protocol's JSON in and out; MLServer forms the batches (``max_batch_size``)."""

    async def load(self) -> bool:
        self.runner = load(artifact.read(self.settings.parameters.uri))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows: Any = NumpyCodec.decode_input(payload.inputs[0])
        outputs = self.runner.run({"x": rows.astype("float32", copy=False)})
        encoded = [NumpyCodec.encode_output(name, array) for name, array in outputs.items()]
        return InferenceResponse(model_name=self.name, outputs=encoded)
