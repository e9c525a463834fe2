"""``hybrid-router demo``: build what is missing, serve it, load both paths, check every answer, report."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import orjson
from rich.console import Console as RichConsole
from rich.live import Live

from optimizers.examples import configs
from router import AsyncClient
from router.cli.lazy import require_linux
from router.cli.server import foreground
from router.demo import interactive, reference, report
from router.demo.interactive import BUDGET_MS, InteractiveRecord
from router.sdk.errors import HybridRouterError
from router.simulate import arrivals as trace

MODEL = "digits"
SEED = 7


@click.command()
@click.option("--policy", type=click.Path(path_type=Path), help="Another policy file.")
@click.option("--seconds", default=30.0, show_default=True, type=click.FloatRange(1, 3600), help="Load time.")
@click.option("--rate", type=click.FloatRange(0.1, 5000), help="Mean interactive requests/s (default 60).")
@click.option("--trace", "trace_file", type=click.Path(path_type=Path), help="Arrivals from a CSV or JSONL.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/demo"), show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--keep", is_flag=True, help="Leave it running afterwards, with curl lines to try.")
def demo(
    policy: Path | None,
    seconds: float,
    rate: float | None,
    trace_file: Path | None,
    out: Path,
    host: str,
    port: int,
    keep: bool,
) -> None:
    """Interactive and bulk requests beside each other on a real model; every answer is checked.

    Example: hybrid-router demo --seconds 60 --rate 100
    """
    try:
        arrivals = _arrivals(seconds, rate, trace_file)
    except trace.TraceError as error:
        raise click.ClickException(str(error)) from None
    require_linux()
    with foreground.ending(), foreground.quiet(out / "demo.log") as console, foreground.interruptible():
        # Said before anything that takes long is imported.
        console.say(
            f"demo: serves a model of handwritten digits, sends it interactive and bulk requests for "
            f"{seconds:g} s, and checks every answer; takes about {seconds + 30:.0f} s, and a minute more "
            "the first time, to train it"
        )
        try:
            problems = _run(
                policy or configs() / "digits.yaml", host, port, arrivals, seconds, out, keep, console
            )
        except KeyboardInterrupt:
            console.say("stopped")
            raise SystemExit(130) from None
        except Exception as error:
            foreground.fail(error, console)
    if problems:
        raise SystemExit(1)


def _arrivals(seconds: float, rate: float | None, trace_file: Path | None) -> list[float]:
    if trace_file is None:
        return trace.bursty(rate or 60.0, seconds, SEED)
    arrivals = trace.read_arrivals(trace_file)
    if rate is not None:
        arrivals = trace.scaled(arrivals, rate)
    return [t for t in arrivals if t < seconds]


def _run(
    policy: Path,
    host: str,
    port: int,
    arrivals: Sequence[float],
    seconds: float,
    out: Path,
    keep: bool,
    console: foreground.Console,
) -> list[str]:
    from router.serving import local, state

    artifacts = _artifacts(policy)
    _build(artifacts, console)
    queue = state.make() / "demo"
    with local.running(policy, host=host, port=port, data=queue, say=console.say) as running:
        console.say(f"serving {policy.name}, ready in {running.started_in_s:.1f} s")
        console.say(running.describe(console.log))
        known = _reference(artifacts, running.policy.models[MODEL].variants)
        run = DemoRun(running.url, arrivals, seconds, known, artifacts)
        figures = run.go(console)
        problems: list[str] = figures["problems"]
        _report(run, figures, out, console)
        if keep and not problems:
            _leave_running(running.url, known, out, console)
        foreground.next_interrupt_ends_at_once()
    return problems


def _artifacts(policy: Path) -> Path:
    from router import policy as policies

    models = policies.read(policy).models
    if MODEL not in models:
        raise policies.PolicyError([f"{policy}: models: the demo needs a model {MODEL!r}"])
    return models[MODEL].artifacts


def _build(folder: Path, console: foreground.Console) -> None:
    from optimizers.examples import digits

    building: list[str] = []

    def say(variant: str, message: str) -> None:
        done = message == "already made" or message.startswith("preparing")
        if not done and not building:
            console.say(f"building variants in {folder}: training a small CNN on real handwritten digits")
            building.append(variant)

    begun = time.monotonic()
    built = digits.build(folder, variants=digits.DEMO_VARIANTS, progress=say)
    if not building:
        return
    for name, artifact in built.items():
        m = artifact.manifest
        console.say(
            f"  {name:<8} {m.metric} {m.quality[m.metric]:.4f}, {m.size_bytes / 1e3:,.0f} kB, "
            f"{m.profile.predict_ms(1):.3f} ms alone, {m.profile.predict_ms(64):.2f} ms for 64"
        )
    console.say(f"built in {time.monotonic() - begun:.1f} s")


def _reference(folder: Path, variants: Sequence[str]) -> reference.Reference:
    from optimizers.examples.digits import test_split

    images, truth = test_split()
    return reference.compute(folder, variants, images, truth)


@dataclass
class DemoRun:
    """One loaded period against a running server."""

    url: str
    arrivals: Sequence[float]
    seconds: float
    known: reference.Reference
    artifacts: Path
    records: list[InteractiveRecord] = field(default_factory=list)
    samples: list[report.QueueSample] = field(default_factory=list)
    bulk: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] | None = None
    _client: AsyncClient | None = None

    def go(self, console: foreground.Console) -> dict[str, Any]:
        """Load, wait for all that was accepted, and give the figures with what went wrong."""
        before, after = asyncio.run(self._load(console))
        bulk = self.summary or {"sent": -1, "rows": 0, "failed": 0, "untrue": 0, "variants": {}, "late": 0}
        return report.figures(self.records, bulk, self._problems(bulk, before, after))

    async def _load(self, console: foreground.Console) -> tuple[dict[str, int], dict[str, int]]:
        before = await self._totals()
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "router.demo.bulk", self.url, MODEL, str(self.artifacts)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert worker.stdin and worker.stdout
            first = await worker.stdout.readline()
            if not first:
                raise RuntimeError("the bulk sender did not start")
            listener = asyncio.create_task(self._listen(worker.stdout))
            view = asyncio.create_task(self._watch(console))
            await interactive.send(self.url, MODEL, self.arrivals, self.known, self.records)
            worker.stdin.close()
            await listener
            await worker.wait()
            view.cancel()
            await asyncio.gather(view, return_exceptions=True)
            return before, await self._settled_totals(before)
        finally:
            if worker.returncode is None:
                worker.terminate()
                await worker.wait()
            if self._client is not None:
                await self._client.close()

    async def _listen(self, lines: asyncio.StreamReader) -> None:
        async for line in lines:
            value = orjson.loads(line)
            if "summary" in value:
                self.summary = value["summary"]
            else:
                self.bulk = value

    async def _watch(self, console: foreground.Console) -> None:
        """Sample the queue four times a second; show both paths as they go."""
        rich = RichConsole(file=console.stream)
        start = time.perf_counter()
        with Live(console=rich, auto_refresh=False, transient=True) as live:
            reported_s = 0.0
            while True:
                await asyncio.sleep(0.25)
                at_s = time.perf_counter() - start
                queue = (await self._stats()).get("queue", {})
                self.samples.append(
                    report.QueueSample(at_s, queue.get("waiting_rows", 0), self.bulk.get("rows", 0))
                )
                if rich.is_terminal:
                    live.update(self._status(at_s), refresh=True)
                elif at_s - reported_s >= 5.0:
                    reported_s = at_s
                    console.say(self._status(at_s))

    def _status(self, at_s: float) -> str:
        recent = self.records[-200:]
        met = sum(r.met for r in recent) / max(1, len(recent))
        used = sorted({r.variant for r in recent if r.variant})
        rate = 0.0
        if len(self.samples) > 8:
            a, b = self.samples[-9], self.samples[-1]
            rate = (b.rows_done - a.rows_done) / (b.at_s - a.at_s)
        waiting = self.samples[-1].waiting_rows if self.samples else 0
        return (
            f"  {at_s:5.1f} s  online: {len(self.records):,} answered, {met:.1%} in time, "
            f"on {', '.join(used) or '-'}  |  batch: {self.bulk.get('rows', 0):,} rows done, "
            f"{waiting:,} wait, {rate:,.0f} rows/s"
        )

    async def _stats(self) -> dict[str, Any]:
        if self._client is None:
            # One for the whole run: making one takes tens of milliseconds, which the load would feel.
            self._client = AsyncClient(self.url)
        try:
            return dict(await self._client.stats(MODEL))
        except HybridRouterError:
            return {}

    async def _totals(self) -> dict[str, int]:
        totals: dict[str, int] = (await self._stats()).get("queue", {}).get("totals", {})
        return totals

    async def _settled_totals(self, before: dict[str, int]) -> dict[str, int]:
        """The queue's totals once the router's view of them has caught up, at most two seconds."""
        totals: dict[str, int] = {}
        for _ in range(20):
            totals = await self._totals()
            if totals.get("submitted") == totals.get("done"):
                break
            await asyncio.sleep(0.1)
        return totals

    def _problems(self, bulk: dict[str, Any], before: dict[str, int], after: dict[str, int]) -> list[str]:
        """Whatever must not happen: anything lost, answered twice, or not what its variant answers."""
        problems: list[str] = []
        silent = len(self.arrivals) - len(self.records)
        failed = [r for r in self.records if r.outcome == "failed"]
        untrue = sum(not r.true_to_variant for r in self.records)
        if silent:
            problems.append(f"{silent} interactive requests got no answer")
        if failed:
            problems.append(f"{len(failed)} interactive requests failed: {failed[0].error}")
        if untrue:
            problems.append(f"{untrue} interactive answers are not what their variant answers")
        if bulk["sent"] != bulk["rows"] + bulk["failed"]:
            problems.append(f"{bulk['sent']} bulk rows sent, {bulk['rows'] + bulk['failed']} answered")
        if bulk["failed"]:
            problems.append(f"{bulk['failed']} bulk rows failed: {bulk.get('errors')}")
        if bulk["untrue"]:
            problems.append(f"{bulk['untrue']} bulk answers are not what their variant answers")
        delta = {name: after.get(name, 0) - before.get(name, 0) for name in after}
        if not delta or delta.get("done") != delta.get("submitted"):
            problems.append(
                f"the queue accepted {delta.get('submitted')} jobs and finished {delta.get('done')}"
            )
        return problems


def _report(run: DemoRun, figures: dict[str, Any], out: Path, console: foreground.Console) -> None:
    RichConsole(file=console.stream, width=110).print(report.table(report.rows(run.records, figures["bulk"])))
    report.write_json(out / "run.json", figures)
    report.draw(out / "run.png", run.records, run.samples)
    met = figures["interactive"]["deadlines_met"]
    bulk = figures["bulk"]
    console.say(f"interactive: {met:.2%} of {len(run.records):,} within {BUDGET_MS:g} ms")
    console.say(
        f"bulk: {bulk['rows']:,} rows, {bulk['rows'] / max(1e-9, bulk.get('seconds', 0)):,.0f} a second"
    )
    if figures["problems"]:
        console.say("PROBLEMS:\n  " + "\n  ".join(figures["problems"]))
    else:
        console.say("nothing lost, nothing answered twice, every answer is its variant's")
    console.say(f"saved {out / 'run.png'} and {out / 'run.json'}")


def _leave_running(url: str, known: reference.Reference, out: Path, console: foreground.Console) -> None:
    """Print three lines to paste, and wait for Ctrl-C."""
    from router import Client
    from router.serving import ray_start

    body = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8]}]}
    body["inputs"][0]["data"] = known.images[0].ravel().tolist()
    path = out / "digit.json"
    path.write_bytes(orjson.dumps(body))
    with Client(url) as client:
        job = client.submit(MODEL, known.images[:3], budget="10min")
    infer = f"{url}/v2/models/{MODEL}/infer"
    console.say("still running; try, from this folder:")
    curl = "curl --noproxy '*'" if ray_start.has_proxy() else "curl"
    console.say(f"  {curl} -s -H 'Latency-Budget-Ms: 50' -d @{path} {infer}")
    console.say(f"  {curl} -si -H 'Latency-Budget-Ms: 600000' -H 'Prefer: respond-async' -d @{path} {infer}")
    console.say(f"  {curl} -s '{url}/v2/requests/{job.id}?wait=20'")
    console.say("Ctrl-C stops it")
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
    console.say("stopping")
