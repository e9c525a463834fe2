"""``hybrid-router simulate``: what would this policy do to yesterday's traffic?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click

from optimizers.files.outputs import writing
from router import policy as policies
from router.cli import arrival_options
from router.policy import Policy, PolicyError
from router.policy.artifacts import read_variants
from router.simulate import arrivals, faults, observed, plan, result, workload
from router.simulate.engine import Settings, Simulation, SimulationError, Variants
from router.simulate.result import SimulationResult
from router.simulate.timing import Costs
from router.simulate.workload import Request, Share

_ERRORS = (
    PolicyError,
    arrivals.TraceError,
    workload.MixError,
    faults.FaultError,
    SimulationError,
    observed.ObservedError,
)


#: "22:00" alone is on this day, so that the same command gives the same result tomorrow.
_ANY_DAY = "2026-01-01"


@click.command(epilog=arrival_options.COLUMNS)
@click.argument("policy", type=click.Path(path_type=Path))
@arrival_options.arrivals
@click.option(
    "--start-at",
    metavar="TIME",
    help="The time of day at the first arrival, such as 22:00 or 2026-07-15T22:00 (UTC; default: the trace's "
    "dates).",
)
@click.option("--replicas", help="Other numbers than the policy's: online=2,batch=4.")
@click.option(
    "--routers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Routers side by side on the same replicas.",
)
@click.option(
    "--fault",
    "fault_texts",
    multiple=True,
    help="kill:MODEL.online.0@30s, slow:...@30s+10s*3, stop:...@30s+2s, outage:MODEL.queue@1min+5s.",
)
@click.option("--compare", type=click.Path(path_type=Path), help="Another policy, on the same arrivals.")
@click.option("--fit", "target", help="Find the fewest replicas that meet so many deadlines: 99.9%.")
@click.option(
    "--observed",
    "observed_files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Times as a live deployment sees them: `status --json` in a file; several follow each other.",
)
def simulate(
    policy: Path,
    trace_file: Path | None,
    rate: float | None,
    scale: float,
    seconds: float | None,
    mix: str | None,
    ignored: str,
    start_at: str | None,
    replicas: str | None,
    routers: int,
    fault_texts: Sequence[str],
    seed: int,
    compare: Path | None,
    target: str | None,
    observed_files: Sequence[Path],
    json_file: Path | None,
    picture: Path | None,
) -> None:
    """Play arrivals against POLICY in virtual time, by the code that decides in production.

    A trace's columns say what each request is; what they leave open is drawn from --mix. Service times come
    from the artifacts' profiles. Same seed, same result.

    \b
    Examples:
      hybrid-router simulate configs/digits.yaml --rate 200 --mix digits:50ms:9,digits:10min:1:64
      hybrid-router simulate configs/digits.yaml --trace day.csv --scale 2 --fit 99.9%
      hybrid-router simulate my.yaml --mix digits:50ms:9:tenant=acme:header.X-Tier=gold,digits:1s:1:tenant=zoo
    """
    try:
        chosen = policies.read(policy)
        requests = workload.asked(
            trace_file,
            workload.parse_mix(mix)
            if mix
            else tuple(Share(m, chosen.defaults.budget) for m in chosen.models),
            seed,
            rate=rate,
            scale=scale,
            seconds=seconds,
            start_at_s=_epoch_s(start_at),
            ignored=arrival_options.names(ignored),
        )
        found = [faults.parse(text) for text in fault_texts]
        costs = Costs(routers=routers)
        each = [observed.read(file) for file in observed_files]
        seen = observed.mean(each) if each else None
        requests = seen.with_row_costs(requests, seed) if seen else requests
        settings = Settings(seed, seen.costs(costs) if seen else costs, tuple(found))
        results: dict[str, SimulationResult] = {}
        for path in filter(None, (policy, compare)):
            this = _with_counts(policies.read(path), replicas)
            measured = read_variants(this, str(path))
            variants = seen.variants(measured) if seen else measured
            settings = replace(settings, moments=observed.moments(each, measured, costs))
            if target:
                results |= _fitted(str(path), this, variants, requests, _share(target), settings)
            else:
                results[str(path)] = Simulation(this, variants, settings).run(requests)
    except _ERRORS as error:
        raise click.ClickException(str(error)) from None
    _tell(results, json_file, picture)
    if any(found.violations for found in results.values()):
        raise SystemExit(1)


def _epoch_s(start_at: str | None) -> float | None:
    if start_at is None:
        return None
    text = start_at.strip()
    found = arrivals.iso_s(f"{_ANY_DAY}T{text}" if "-" not in text[:5] else text)
    if found is None:
        raise SimulationError(f"--start-at {start_at!r} is not a time; write 22:00 or 2026-07-15T22:00")
    return found


def _with_counts(policy: Policy, text: str | None) -> Policy:
    counts: dict[str, int] = {}
    for part in text.split(",") if text else ():
        kind, _, number = part.strip().partition("=")
        if (
            kind not in ("online", "batch")
            or not number.isdigit()
            or not 1 <= int(number) <= plan.MAX_REPLICAS
        ):
            raise SimulationError(
                f"--replicas {part!r}: write online=2, batch=4 or both, 1 to {plan.MAX_REPLICAS}"
            )
        counts[kind] = int(number)
    return plan.with_replicas(policy, counts)


def _share(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
    except ValueError:
        value = -1.0
    if not 0.0 < value <= 1.0:
        raise SimulationError(f"--fit {text!r} is not a share; write 99.9% or 0.999")
    return value


def _fitted(
    name: str,
    policy: Policy,
    variants: Variants,
    requests: Sequence[Request],
    target: float,
    settings: Settings,
) -> dict[str, SimulationResult]:
    def tried(counts: Mapping[str, int], met: float) -> None:
        click.echo(f"  {_counts(counts)}: {met:.3%} of deadlines met", err=True)

    best = plan.fit(policy, variants, requests, target, settings, tried)
    click.echo(f"{name}: {_counts(best.replicas)} meet {best.met:.3%} of the deadlines", err=True)
    return {f"{name} ({_counts(best.replicas)})": best.result}


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{kind}={count}" for kind, count in counts.items())


def _tell(results: Mapping[str, SimulationResult], json_file: Path | None, picture: Path | None) -> None:
    if arrival_options.write_json({name: found.to_json() for name, found in results.items()}, json_file):
        click.echo(result.table(results))
    if picture is not None:
        with writing("--picture", picture):
            result.draw(picture, results)
        click.echo(f"picture: {picture}", err=True)
