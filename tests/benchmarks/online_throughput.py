"""Routed throughput of a small MLP beside the compositions that people write, and beside other servers.

The rounds alternate, so that a drift of the machine's speed meets all alike. wrk sends one real row.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import orjson

from optimizers.examples import digits
from optimizers.tensors import Array
from tests.benchmarks import peers, wrk
from tests.benchmarks.report import Figure, at_least, at_most

OURS, OURS_JSON = "router", "router, JSON"
#: The same model, run by the router itself.
OWN, OWN_JSON = "router with in_router", "router with in_router, JSON"
COMPOSED, INSIDE = "composition through @serve.batch", "model in the ingress"
LITSERVE, MLSERVER = "LitServe", "MLServer"
BARS = {COMPOSED: 3.5, INSIDE: 0.9, LITSERVE: 3.0, MLSERVER: 3.0}
_WARM_S = 1.0

POLICY = """
  mlp:
    artifacts: {folder}
    online: {{variants: [float32], replicas: 1, max_batch: 64}}
  mlp-own:
    artifacts: {folder}
    online: {{variants: [float32], in_router: true, max_batch: 64}}
"""

Loads = dict[tuple[str, int], list[wrk.Load]]


def deploy(folder: Path) -> None:
    """The two compositions, beside the router in its cluster."""
    from tests.benchmarks import compositions

    compositions.run("/composed", compositions.composed(str(folder / "float32")))
    compositions.run("/inside", compositions.inside(str(folder / "float32")))


def measure(
    url: str, folder: Path, temporary: Path, seconds: float, rounds: int, *, with_peers: bool
) -> Loads:
    """Loads by name and connections, one for each round."""
    binary, plain = binary_script(temporary), json_script(temporary)
    infer, own = "/v2/models/mlp/infer", "/v2/models/mlp-own/infer"
    targets = {OURS: (url + infer, binary), COMPOSED: (f"{url}/composed{infer}", binary)}
    targets[INSIDE] = (f"{url}/inside{infer}", binary)
    targets[OWN] = (url + own, binary)
    for address, lua in targets.values():
        wrk.run(address, 64, _WARM_S, lua)
    loads: Loads = {}

    def one(name: str, address: str, lua: Path, connections: int = 64) -> None:
        load = wrk.run(address, connections, seconds, lua)
        loads.setdefault((name, connections), []).append(load)
        shown = f"{load.requests_per_s:8.0f}/s p50 {load.p50_ms:.2f} ms, {load.errors} errors"
        print(f"  {name:<34} c={connections:<3} {shown}", flush=True)

    for _ in range(rounds):
        for connections in (64, 1):
            for name, (address, lua) in targets.items():
                one(name, address, lua, connections)
        if with_peers:
            one(OURS_JSON, url + infer, plain)
            one(OWN_JSON, url + own, plain)
            for start in running_peers(folder):
                with start() as peer:
                    lua = wrk.script(temporary / "peer.lua", peer.body, JSON_HEADERS)
                    wrk.run(peer.url, 64, _WARM_S, lua)
                    one(peer.name, peer.url, lua)
    return loads


JSON_HEADERS = {"Content-Type": "application/json"}


def running_peers(folder: Path) -> Sequence[Callable[[], AbstractContextManager[peers.Peer]]]:
    """Each is up only while it is measured: it must not take from the others."""
    artifact = (folder / "float32").absolute()
    return (
        lambda: peers.litserve(artifact, _row().ravel().tolist()),
        lambda: peers.mlserver(artifact, _json_body()),
    )


def _row() -> Array:
    images, _ = digits.test_split()
    row: Array = images[0].reshape(1, 64)
    return row


def _json_body() -> bytes:
    data = _row().ravel().tolist()
    return orjson.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": data}]})


def json_script(temporary: Path) -> Path:
    """The same row as JSON both ways, as the peers take it."""
    return wrk.script(temporary / "mlp-json.lua", _json_body(), JSON_HEADERS)


def binary_script(temporary: Path) -> Path:
    """A request of one real row, 256 bytes of float32, binary both ways."""
    raw = _row().tobytes()
    entry = {
        "name": "x",
        "datatype": "FP32",
        "shape": [1, 64],
        "parameters": {"binary_data_size": len(raw)},
    }
    head = orjson.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}})
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }
    return wrk.script(temporary / "mlp.lua", head + raw, headers)


def figures(loads: Mapping[tuple[str, int], Sequence[wrk.Load]]) -> list[Figure]:
    """Ratios pair by pair, their medians against the bars. Peers are held against ours with JSON.

    The bars are for the router with a replica; what ``in_router`` makes of it is told beside each.
    """
    rows = []
    for other, bar in BARS.items():
        if (other, 64) not in loads:
            continue
        ours = OURS if other in (COMPOSED, INSIDE) else OURS_JSON
        rows.append(_throughput(loads, ours, other, bar))
        if ours == OURS_JSON:
            rows.append(_throughput(loads, OURS, other, None))
        rows.append(_throughput(loads, OWN if ours == OURS else OWN_JSON, other, None))
    return [*rows, _latency(loads, OURS, 1.3), _latency(loads, OWN, None)]


def _latency(loads: Mapping[tuple[str, int], Sequence[wrk.Load]], ours: str, bar: float | None) -> Figure:
    mine, inside = loads[ours, 1], loads[INSIDE, 1]
    ratios = [a.p50_ms / b.p50_ms for a, b in zip(mine, inside, strict=True)]
    detail = {
        "ratios": ratios,
        "router_ms": [load.p50_ms for load in mine],
        "other_ms": [load.p50_ms for load in inside],
    }
    return _median(f"p50 at one connection, {ours} over {INSIDE}", ratios, detail, at_most, bar)


def _throughput(
    loads: Mapping[tuple[str, int], Sequence[wrk.Load]], ours: str, other: str, bar: float | None
) -> Figure:
    mine, theirs = loads[ours, 64], loads[other, 64]
    ratios = [a.requests_per_s / b.requests_per_s for a, b in zip(mine, theirs, strict=True)]
    detail = {
        "ratios": ratios,
        "router_per_s": [load.requests_per_s for load in mine],
        "other_per_s": [load.requests_per_s for load in theirs],
        "router_p99_ms": [load.p99_ms for load in mine],
        "other_p99_ms": [load.p99_ms for load in theirs],
        "errors": sum(load.errors for load in (*mine, *theirs)),
    }
    return _median(f"throughput at 64 connections, {ours} over {other}", ratios, detail, at_least, bar)


def _median(
    name: str, ratios: Sequence[float], detail: object, held: Callable[..., Figure], bar: float | None
) -> Figure:
    """The median of the rounds, held against the bar where there is one."""
    value = statistics.median(ratios)
    if bar is None:
        return Figure(name, value, "ratio", detail=detail)
    return held(name, value, "ratio", bar, detail)
