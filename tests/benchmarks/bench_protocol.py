"""Binary tensors beside JSON, and the SDK beside a bare POST of the same bytes: ``make bench NAME=protocol``.

Both pairs run on one server and alternate, so that a drift of the machine's speed meets both alike.

- **Binary over JSON**: one 224x224x3 float32 image a request, the model does next to nothing with it. The
  same httpx client sends both and does for each what its users do: encode the array, POST, read the answer.
  JSON is written and read by orjson, which takes numpy arrays as they are: slower encoders are commoner.
- **SDK over bare POST**: a row of the small MLP, where what stands around a request weighs most, and the
  image. The bare side sends finished bytes and does not look at the answer beyond its status.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson

from optimizers.examples import digits
from optimizers.tensors import Array
from router import Client
from router.sdk import codec
from router.sdk.codec import HEADER_LENGTH, ModelInfo
from tests.benchmarks import colour, mlp
from tests.benchmarks.report import Figure, at_least, at_most, write

POLICY = """
models:
  colour:
    artifacts: {colour}
    online: {{variants: [float32], replicas: 1, max_batch: 16}}
  mlp:
    artifacts: {mlp}
    online: {{variants: [float32], replicas: 1, max_batch: 64}}
routes:
  - {{name: any, to: online}}
limits: {{body: 16MiB}}
"""
#: Long enough that nothing is refused: what is compared is cost, not admission.
BUDGET_MS = 20_000
BINARY_BAR, SDK_BAR = 5.0, 1.15

Call = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two ways of the same request, measured in turn: a figure for each round of each."""

    ours: list[float]
    other: list[float]

    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.other, strict=True)]

    def detail(self, ours: str, other: str) -> dict[str, Any]:
        return {"rounds": {ours: self.ours, other: self.other}, "ratios": self.ratios()}


def path_of(model: str) -> str:
    return f"/v2/models/{model}/infer"


def binary_request(array: Array, info: ModelInfo) -> tuple[bytes, dict[str, str]]:
    """One request in the binary extension, and its headers."""
    body, json_bytes = codec.encode(codec.arrange(array, info), None, None)
    headers = {HEADER_LENGTH: str(json_bytes), "Content-Type": "application/octet-stream"}
    return body, {**headers, "Latency-Budget-Ms": str(BUDGET_MS)}


def binary_call(client: httpx.Client, array: Array, info: ModelInfo) -> Call:
    def call() -> None:
        body, headers = binary_request(array, info)
        reply = client.post(path_of(info.name), content=body, headers=headers)
        reply.raise_for_status()
        if not codec.decode(reply.headers, reply.content, 0.0).outputs:
            raise RuntimeError("no outputs")

    return call


def json_call(client: httpx.Client, array: Array, info: ModelInfo) -> Call:
    (spec,) = info.inputs
    headers = {"Content-Type": "application/json", "Latency-Budget-Ms": str(BUDGET_MS)}

    def call() -> None:
        entry = {"name": spec.name, "datatype": spec.datatype, "shape": array.shape, "data": array.ravel()}
        body = orjson.dumps({"inputs": [entry]}, option=orjson.OPT_SERIALIZE_NUMPY)
        reply = client.post(path_of(info.name), content=body, headers=headers)
        reply.raise_for_status()
        if not [np.array(output["data"]) for output in orjson.loads(reply.content)["outputs"]]:
            raise RuntimeError("no outputs")

    return call


def requests_per_s(call: Call, callers: int, seconds: float) -> float:
    """In a closed loop of ``callers`` threads."""
    begin = time.perf_counter()
    end = begin + seconds

    def loop(_: int) -> int:
        count = 0
        while time.perf_counter() < end:
            call()
            count += 1
        return count

    with ThreadPoolExecutor(callers) as pool:
        total = sum(pool.map(loop, range(callers)))
    return total / (time.perf_counter() - begin)


def throughput(url: str, image: Array, info: ModelInfo, callers: int, seconds: float, rounds: int) -> Pair:
    limits = httpx.Limits(max_connections=callers, max_keepalive_connections=callers)
    with httpx.Client(base_url=url, limits=limits, timeout=60.0) as client:
        binary, plain = binary_call(client, image, info), json_call(client, image, info)
        for call in (binary, plain):
            requests_per_s(call, callers, min(1.0, seconds))  # warm
        pair = Pair([], [])
        for _ in range(rounds):
            pair.ours.append(requests_per_s(binary, callers, seconds))
            pair.other.append(requests_per_s(plain, callers, seconds))
    return pair


def latencies(url: str, array: Array, info: ModelInfo, requests: int, rounds: int) -> Pair:
    """p50 of the SDK and of the bare POST, ms, call by call in turn, each on one connection."""
    body, headers = binary_request(array, info)
    path, budget_s = path_of(info.name), BUDGET_MS / 1e3
    with httpx.Client(base_url=url, timeout=60.0) as client, Client(url) as sdk:

        def bare() -> None:
            client.post(path, content=body, headers=headers).raise_for_status()

        def ours() -> None:
            sdk.infer(info.name, array, budget_s)

        pair = Pair([], [])
        timed(ours, bare, requests // 4)  # warm
        for _ in range(rounds):
            for figures, times in zip((pair.ours, pair.other), timed(ours, bare, requests), strict=True):
                figures.append(statistics.median(times) * 1e3)
    return pair


def timed(first: Call, second: Call, requests: int) -> tuple[list[float], list[float]]:
    """Seconds of each call, the two in turn, whichever goes first changing too."""
    times: tuple[list[float], list[float]] = ([], [])
    order: list[tuple[Call, list[float]]] = [(first, times[0]), (second, times[1])]
    gc.collect()
    for _ in range(requests):
        for call, kept in order:
            begin = time.perf_counter()
            call()
            kept.append(time.perf_counter() - begin)
        order.reverse()
    return times


def figures(rates: dict[int, Pair], costs: dict[str, Pair]) -> list[Figure]:
    found: list[Figure] = []
    for callers, pair in rates.items():
        text = f"{statistics.median(pair.ours):.0f}/s binary, {statistics.median(pair.other):.0f}/s JSON"
        name = f"binary over JSON, 224x224x3 float32, {callers} connections"
        found.append(
            at_least(name, statistics.median(pair.ratios()), "times", BINARY_BAR, text + spread(pair))
        )
    for model, pair in costs.items():
        text = f"{statistics.median(pair.ours):.3f} ms SDK, {statistics.median(pair.other):.3f} ms bare"
        name = f"SDK infer over a bare POST, {model}, p50"
        found.append(at_most(name, statistics.median(pair.ratios()), "times", SDK_BAR, text + spread(pair)))
    return found


def spread(pair: Pair) -> str:
    ratios = pair.ratios()
    return f"; rounds {min(ratios):.2f} to {max(ratios):.2f}"


def measure(url: str, seconds: float, rounds: int, requests: int, callers: Sequence[int]) -> None:
    image = colour.images(1, 7).inputs["image"]
    row = digits.splits()[2].inputs["image"][:1].reshape(1, 64)
    with Client(url) as client:
        about_image, about_row = client.model("colour"), client.model("mlp")
    rates = {n: throughput(url, image, about_image, n, seconds, rounds) for n in callers}
    costs = {
        "small row": latencies(url, row, about_row, requests, rounds),
        "image": latencies(url, image, about_image, max(20, requests // 4), rounds),
    }
    raw = {
        "throughput": {str(n): pair.detail("binary", "JSON") for n, pair in rates.items()},
        "p50_ms": {name: pair.detail("SDK", "bare") for name, pair in costs.items()},
    }
    write("protocol", figures(rates, costs), measured=raw)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=5.0, help="of each load of the first part")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument(
        "--requests", type=int, default=1500, help="of each side, in each round of the second"
    )
    options.add_argument("--callers", type=int, nargs="+", default=[1, 8])
    options.add_argument("--port", type=int, default=8322)
    chosen = options.parse_args()
    folder = Path("build/bench").absolute()
    colour.build(folder / "colour")
    mlp.build(folder / "mlp")
    from router.serving import local

    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        policy = Path(temporary) / "policy.yaml"
        policy.write_text(POLICY.format(colour=folder / "colour", mlp=folder / "mlp"))
        with local.running(policy, port=chosen.port) as running:
            measure(running.url, chosen.seconds, chosen.rounds, chosen.requests, chosen.callers)


if __name__ == "__main__":
    main()
