"""What a run came to: ``report.json`` for programs and ``report.html`` for people, from the manifests.

A row per variant, which goals are met, the Pareto front of quality against latency and against
size, and plain answers to two questions: what did it cost in quality, and what of it can be read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from optimizers.artifact import Artifact, Manifest
from optimizers.pipeline.chart import scatter
from optimizers.pipeline.goals import figures
from optimizers.pipeline.pareto import front

if TYPE_CHECKING:
    from optimizers.pipeline.result import PipelineResult

TEMPLATE = Path(__file__).parents[1] / "assets" / "report.html.j2"

#: Batch sizes in the table, where they were measured.
_SHOWN = (1, 8, 32)


def write(result: PipelineResult, out: Path) -> tuple[Path, Path]:
    """``report.json`` and ``report.html`` in ``out``. Gives their paths."""
    summary = summarize(result)
    data, page = out / "report.json", out / "report.html"
    data.write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY))
    page.write_text(_page(summary), encoding="utf-8")
    return data, page


def summarize(result: PipelineResult) -> dict[str, Any]:
    """The report as plain values."""
    recipe = result.recipe
    original = result.artifacts[recipe.original.name].manifest
    manifests = {name: artifact.manifest for name, artifact in result.artifacts.items()}
    batch = original.profile.max_batch
    by_latency = {n: (m.quality[m.metric], m.profile.predict_ms(batch) / batch) for n, m in manifests.items()}
    by_size = {n: (m.quality[m.metric], float(m.size_bytes)) for n, m in manifests.items()}
    on_latency, on_size = front(by_latency), front(by_size)
    goals = {
        name: [{"goal": str(r.goal), "value": r.value, "holds": r.holds} for r in results]
        for name, results in result.goals.items()
    }
    return {
        "recipe": recipe.name,
        "original": original.variant,
        "metric": original.metric,
        "machine": dict(original.machine),
        "front_batch": batch,
        "variants": [
            {
                "name": name,
                "runtime": m.runtime,
                "threads": m.threads,
                "passes": list(m.recipe),
                "figures": figures(m, original),
                "tolerance": m.tolerance,
                "fixed_ms": m.profile.fixed_ms,
                "per_row_ms": m.profile.per_row_ms,
                "latency": m.profile.to_json()["points"],
                "goals": goals.get(name, []),
                "on_front": {"latency": name in on_latency, "size": name in on_size},
                "interpretability": dict(m.interpretability),
                "notes": dict(m.notes),
            }
            for name, m in manifests.items()
        ],
        "skipped": dict(result.skipped),
        "front": {"latency": on_latency, "size": on_size},
        "points": {"latency": by_latency, "size": by_size},
        "answers": {
            "quality": [quality_answer(m, original) for m in manifests.values() if m is not original],
            "interpretability": [reading_answer(a) for a in result.artifacts.values()],
        },
    }


def quality_answer(manifest: Manifest, original: Manifest) -> str:
    """One sentence: what this variant costs in quality against the original."""
    metric = manifest.metric.replace("_", " ")
    drop = manifest.quality_drop
    change = "the same" if abs(drop) < 5e-5 else f"{abs(drop):.4f} {'lower' if drop > 0 else 'higher'}"
    return (
        f"{manifest.variant}: {metric} {manifest.quality[manifest.metric]:.4f} against "
        f"{original.quality[original.metric]:.4f}, {change}; "
        f"it agrees with the original to {manifest.fidelity:.4f}."
    )


def reading_answer(artifact: Artifact) -> str:
    """One sentence: what of this variant a person can read."""
    manifest = artifact.manifest
    facts = dict(manifest.interpretability)
    kind = facts.pop("kind", "none")
    if kind == "none":
        return f"{manifest.variant}: none; a network of {manifest.parameters:,} weights cannot be read."
    text = facts.pop("text", None)
    details = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in facts.items())
    where = f"; it is written out in {manifest.variant}/{text}" if text else ""
    return (
        f"{manifest.variant}: can be read ({kind}: {details}), and answers as the original does "
        f"on {manifest.fidelity:.1%} of the test rows{where}."
    )


def _page(summary: dict[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    metric = summary["metric"].replace("_", " ")
    points, fronts = summary["points"], summary["front"]
    batch = summary["front_batch"]
    charts = [
        scatter(
            points["latency"],
            fronts["latency"],
            title=f"{metric} against time per row at batch {batch}",
            cost="ms per row",
            quality=metric,
        ),
        scatter(
            {n: (q, c / 1024) for n, (q, c) in points["size"].items()},
            fronts["size"],
            title=f"{metric} against size",
            cost="KiB",
            quality=metric,
        ),
    ]
    measured = {p["batch"] for p in summary["variants"][0]["latency"]}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        summary=summary,
        metric_label=metric,
        shown=[n for n in _SHOWN if n in measured],
        charts=[Markup(c) for c in charts],  # built by optimizers.pipeline.chart, which escapes every name
    )
