"""The two ways in which people put a model behind Ray Serve, with our codec, so that only the path differs.

Both take and give the same protocol bodies as the router and run the same `Runner` on the same artifact.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ray import serve
from ray.serve.schema import LoggingConfig

from optimizers import artifact
from optimizers.runner import load
from optimizers.tensors import Tensors, check, concat, pack, rows_of, split, unpack
from router.ingress.codec import protocol
from router.ingress.codec.protocol import HEADER_LENGTH

MAX_BATCH = 64
#: Long enough to gather what 64 connections send, short beside a request's time; Serve's default is 10 ms.
BATCH_WAIT_S = 0.002

Infer = Callable[[Tensors], Awaitable[Tensors]]


class Endpoint:
    """ASGI: one protocol request in, one answer out, by ``infer``."""

    def __init__(self, specs_in: Any, specs_out: Any, infer: Infer) -> None:
        self._in, self._out, self._infer = specs_in, specs_out, infer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                kind = (await receive())["type"]
                await send({"type": f"{kind}.complete"})
                if kind == "lifespan.shutdown":
                    return
        message = await receive()
        body = message.get("body", b"")
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
        headers = dict(scope["headers"])
        length = headers.get(HEADER_LENGTH.encode())
        request = protocol.decode(body, int(length) if length else None)
        check(request.inputs, self._in)
        outputs = await self._infer(request.inputs)
        envelope: dict[str, Any] = {"model_name": "mlp", "model_version": "float32", "id": request.id or ""}
        answer, size = protocol.encode(
            outputs, self._out, wanted=request.outputs, binary=request.binary, envelope=envelope
        )
        shown = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(answer))]
        if size is not None:
            shown.append((HEADER_LENGTH.encode(), b"%d" % size))
        await send({"type": "http.response.start", "status": 200, "headers": shown})
        await send({"type": "http.response.body", "body": answer})


class _Model:
    def __init__(self, folder: str) -> None:
        self.runner = load(artifact.read(folder))

    def run(self, requests: list[Tensors]) -> list[Tensors]:
        return split(self.runner.run(concat(requests)), [rows_of(r) for r in requests])


@serve.ingress()
class ModelInIngress:
    """The model inside the ingress deployment, batched by ``@serve.batch``."""

    def __init__(self, folder: str) -> None:
        self._model = _Model(folder)

    def __serve_build_asgi_app__(self) -> Endpoint:
        return Endpoint(self._model.runner.inputs, self._model.runner.outputs, self.infer)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S, max_concurrent_batches=2)
    async def infer(self, requests: list[Tensors]) -> list[Tensors]:
        return self._model.run(requests)


class BatchedModel:
    """The model deployment of the composition: one Ray call per request, batched on its side."""

    def __init__(self, folder: str, max_batch: int) -> None:
        self._model = _Model(folder)
        self.infer.set_max_batch_size(max_batch)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S, max_concurrent_batches=2)
    async def infer(self, messages: list[bytes]) -> list[bytes]:
        answers = self._model.run([unpack(message)[0] for message in messages])
        return [pack(answer) for answer in answers]


@serve.ingress()
class ComposedIngress:
    """The ingress deployment of the composition."""

    def __init__(self, folder: str, model: Any) -> None:
        manifest = artifact.read(folder).manifest
        self._in, self._out, self._model = manifest.inputs, manifest.outputs, model

    def __serve_build_asgi_app__(self) -> Endpoint:
        async def infer(inputs: Tensors) -> Tensors:
            return unpack(await self._model.infer.remote(pack(inputs)))[0]

        return Endpoint(self._in, self._out, infer)


_OPTIONS: dict[str, Any] = {
    "max_ongoing_requests": 10_000,
    "ray_actor_options": {"num_cpus": 0},
    "graceful_shutdown_wait_loop_s": 0.1,
}


def composed(folder: str, max_batch: int = MAX_BATCH) -> Any:
    """The composition with the artifact in ``folder``, as an application."""
    inner = serve.deployment(BatchedModel, name="batched-model", **_OPTIONS).bind(folder, max_batch)
    return serve.deployment(ComposedIngress, name="composed", **_OPTIONS).bind(folder, inner)


def inside(folder: str) -> Any:
    """The model in the ingress deployment, as an application."""
    return serve.deployment(ModelInIngress, name="inside", **_OPTIONS).bind(folder)


def run(prefix: str, application: Any) -> None:
    """Serve an application under ``prefix``, as quiet as the router is."""
    serve.run(
        application,
        name=prefix.strip("/"),
        route_prefix=prefix,
        logging_config=LoggingConfig(enable_access_log=False),
    )


__all__ = ["BATCH_WAIT_S", "MAX_BATCH", "composed", "inside", "run"]
