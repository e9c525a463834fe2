"""The small MLP behind LitServe, as its documentation writes a batched API: ``serve_litserve FOLDER PORT``.

It runs in the peers' own environment, on the same artifact and through the same `optimizers.runner`.
"""

from __future__ import annotations

import sys
from typing import Any

import litserve
import numpy as np

from optimizers import artifact
from optimizers.runner import load

MAX_BATCH, BATCH_WAIT_S = 64, 0.002


class Mlp(litserve.LitAPI):  # type: ignore[misc]
    """JSON ``{"x": [64 numbers]}`` to ``{"label": n, "scores": [10 numbers]}``."""

    def __init__(self, folder: str) -> None:
        super().__init__(max_batch_size=MAX_BATCH, batch_timeout=BATCH_WAIT_S)
        self._folder = folder

    def setup(self, device: str) -> None:
        self.runner = load(artifact.read(self._folder))

    # LitServe makes the endpoint's parameter of this annotation: without one it is the body's JSON.
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        return np.asarray(request["x"], np.float32)

    def batch(self, inputs: list[Any]) -> Any:
        return np.stack(inputs)

    def predict(self, rows: Any) -> Any:
        return self.runner.run({"x": rows})

    def unbatch(self, outputs: Any) -> list[Any]:
        return list(zip(outputs["label"].tolist(), outputs["scores"].tolist(), strict=True))

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"label": output[0], "scores": output[1]}


if __name__ == "__main__":
    # fast_queue: ZeroMQ in place of multiprocessing queues, LitServe's own advice for many requests.
    server = litserve.LitServer(Mlp(sys.argv[1]), accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        num_api_servers=1,
        log_level="error",
        generate_client_file=False,
    )
