"""The chaos run's endpoint: `hybrid-router serve`, callers on it, and the death of its queue server.

Callers send plain HTTP, so that no client's retry hides a refusal. Each answer is checked against what the
variant it names gives for that image.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from optimizers.examples import digits
from router.demo import reference
from workers.ports import free_port

VARIANTS = ("float32", "int8", "tree")
POLICY = """
models:
  digits:
    artifacts: {artifacts}
    online: {{variants: [float32, int8, tree], replicas: 1, max_batch: 64}}
    batch: {{variant: int8, workers: 1, max_batch: 256, lease: 3s}}
routes:
  - {{name: bulk, when: {{budget: "> 30s"}}, to: batch}}
  - {{name: flexible, to: auto}}
defaults: {{budget: 1s, hold: 30s, results: {{keep: 1h}}}}
"""
INFER = "/v2/models/digits/infer"
AUTO_BUDGET_MS, BULK_BUDGET_MS = 5_000, 600_000
#: Beyond the budget: what an answer may take to be written and read on a loaded machine.
READ_S = 30.0
#: A recovery that takes so long is taken for one that never comes.
GIVEN_UP_S = 60.0


class Endpoint:
    """A server as a user starts it. ``counts`` is what its callers saw; see :meth:`problems`."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder / "endpoint"
        self.counts: Counter[str] = Counter()
        #: What was refused or wrong, for the report.
        self.words: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.recoveries_s: list[tuple[str, float]] = []
        self._rng = random.Random(f"{seed}-endpoint")
        self._accepted: dict[str, int] = {}
        self._stalled_s = 0.0
        self._server: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Until the server says that it is ready."""
        self.folder.mkdir()
        artifacts = Path("build/test/digits").absolute()
        digits.build(artifacts)
        self._reference = reference.compute(artifacts, VARIANTS, *digits.test_split())
        policy, port = self.folder / "digits.yaml", free_port()
        policy.write_text(POLICY.format(artifacts=artifacts))
        command = [sys.executable, "-m", "router.cli.main", "serve", str(policy), "--port", str(port)]
        self._server = subprocess.Popen(
            [*command, "--data", str(self.folder / "queue"), "--grpc-port", "0"],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        self._read_until_ready()
        self._client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=AUTO_BUDGET_MS / 1e3 + READ_S, trust_env=False
        )

    def _read_until_ready(self) -> None:
        assert self._server and self._server.stdout
        said = ""
        for line in self._server.stdout:
            said += line
            if line.startswith("ready in"):
                return
        raise AssertionError(f"the endpoint did not start:\n{said}")

    async def play(self, seconds: float) -> None:
        """Callers of both kinds, and faults of the queue server between them."""
        until = time.monotonic() + seconds
        callers = [asyncio.create_task(self._call(self._auto, 0.05, until)) for _ in range(2)]
        callers.append(asyncio.create_task(self._call(self._bulk, 0.3, until)))
        callers.append(asyncio.create_task(self._watch_own_stalls(until)))
        faults = (self._kill_queue, self._stop_queue)
        while time.monotonic() < until - 15:
            await asyncio.sleep(self._rng.uniform(3.0, 8.0))
            await self._rng.choice(faults)()
        await asyncio.gather(*callers)
        await self._collect()

    async def _call(self, send: Callable[[int], Awaitable[None]], pause_s: float, until: float) -> None:
        while time.monotonic() < until:
            await send(self._rng.randrange(len(self._reference.images)))
            await asyncio.sleep(self._rng.uniform(0.0, 2 * pause_s))

    async def _watch_own_stalls(self, until: float) -> None:
        """How long the callers' own process did not run, of which the server knows nothing."""
        while (before := time.monotonic()) < until:
            await asyncio.sleep(0.05)
            self._stalled_s += max(0.0, time.monotonic() - before - 0.1)

    def _body(self, index: int) -> dict[str, Any]:
        image = self._reference.images[index : index + 1]
        entry = {"name": "image", "datatype": "FP32", "shape": list(image.shape)}
        return {"inputs": [{**entry, "data": image.ravel().tolist()}]}

    async def _auto(self, index: int) -> None:
        """A request that either path may answer. With the queue dead, the online replica has to."""
        self.counts["auto"] += 1
        started, stalled_s = time.monotonic(), self._stalled_s
        reply = await self._client.post(
            INFER, json=self._body(index), headers={"Latency-Budget-Ms": str(AUTO_BUDGET_MS)}
        )
        own_s = self._stalled_s - stalled_s
        late = time.monotonic() - started - own_s > AUTO_BUDGET_MS / 1e3 + 1.0
        if reply.status_code == 200:
            self._check(reply, index, "auto")
            if late and reply.headers["Deadline-Met"] == "true":
                self.counts["auto late in silence"] += 1
                took_s = time.monotonic() - started
                self.words[f"late: {took_s:.1f} s, own stalls {own_s:.1f} s, {dict(reply.headers)}"] += 1
        elif reply.status_code == 202:
            self._accepted[reply.json()["id"]] = index
            self.counts["auto handed back"] += 1
        elif reply.status_code == 504:
            self.counts["auto reported as missed"] += 1
        else:
            self.counts["auto refused"] += 1
            self.words[f"{reply.status_code} {reply.json().get('detail')}"] += 1

    async def _bulk(self, index: int) -> None:
        """A request that only the queue may take: refused while that is dead, kept if accepted."""
        headers = {"Latency-Budget-Ms": str(BULK_BUDGET_MS), "Prefer": "respond-async"}
        reply = await self._client.post(INFER, json=self._body(index), headers=headers)
        if reply.status_code == 202:
            self.counts["bulk accepted"] += 1
            self._accepted[reply.json()["id"]] = index
        else:
            self.counts[f"bulk refused with {reply.status_code}"] += 1

    def _check(self, reply: httpx.Response, index: int, kind: str) -> None:
        body = reply.json()
        outputs = {o["name"]: np.array(o["data"]).reshape(o["shape"]) for o in body["outputs"]}
        variant, place = reply.headers.get("Variant"), np.array([index])
        right = self._reference.matches(variant, place, outputs["label"].reshape(-1), outputs["scores"])
        self.counts[f"{kind} answered {reply.headers.get('Path')}"] += 1
        self.counts["wrong"] += not right.all()

    def _queue_server(self) -> psutil.Process:
        assert self._server
        children = psutil.Process(self._server.pid).children()
        return next(p for p in children if re.search("valkey|redis", p.name()))

    async def _kill_queue(self) -> None:
        """Nobody here starts it again: that is the business of `serve`."""
        await self._recovered("endpoint's queue server killed", lambda: self._queue_server().kill())

    async def _stop_queue(self) -> None:
        """It neither answers nor ends, as on a machine that swaps: for longer than a caller's budget."""
        stopped = self._queue_server()
        stopped.send_signal(signal.SIGSTOP)
        await asyncio.sleep(self._rng.uniform(2.0, 8.0))
        await self._recovered("endpoint's queue server stopped", stopped.resume)

    async def _recovered(self, name: str, fault: Callable[[], object]) -> None:
        started = time.monotonic()
        fault()
        headers = {"Latency-Budget-Ms": str(BULK_BUDGET_MS), "Prefer": "respond-async"}
        while time.monotonic() < started + GIVEN_UP_S:
            reply = await self._client.post(INFER, json=self._body(0), headers=headers)
            if reply.status_code == 202:
                self._accepted[reply.json()["id"]] = 0
                break
            await asyncio.sleep(0.05)
        self.faults[name] += 1
        self.recoveries_s.append((name, time.monotonic() - started))

    async def _collect(self) -> None:
        """What became of everything that was accepted."""
        until = time.monotonic() + 60
        for id, index in self._accepted.items():
            while True:
                reply = await self._client.get(f"/v2/requests/{id}?wait=20")
                if reply.status_code not in (202, 503) or time.monotonic() > until:
                    break
            if reply.status_code == 200:
                self._check(reply, index, "queued")
            elif reply.status_code == 504:
                self.counts["queued reported as missed"] += 1
            else:
                self.counts["lost"] += 1
                self.words[f"{id}: {reply.status_code} {reply.text[:200]}"] += 1

    def problems(self) -> dict[str, int]:
        """What must be 0."""
        return {n: self.counts[n] for n in ("lost", "wrong", "auto refused", "auto late in silence")}

    async def close(self) -> None:
        if self._server is not None:
            await self._client.aclose()
            self._server.terminate()
            await asyncio.to_thread(self._server.wait)
