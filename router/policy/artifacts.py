"""A policy held against the artifacts it names: every variant is there, whole, and fits the others."""

from __future__ import annotations

from collections.abc import Mapping

from optimizers import artifact
from optimizers.artifact import ArtifactError, Manifest
from optimizers.runtimes.example_row import Example, example_of
from router.policy import ModelSection, Policy, PolicyError
from router.policy.facts import MeasuredVariant

#: A router runs no model that takes longer for a row: everybody else's requests would wait for the processor.
_MOST_IN_ROUTER_MS = 5.0


class MissingArtifact(PolicyError):
    """A variant that the policy names is not there, or cannot be read."""


def read_manifests(policy: Policy, source: str = "policy") -> dict[str, dict[str, Manifest]]:
    """Every variant's manifest, digests checked, and the policy checked against them.

    Raises `MissingArtifact` naming each problem: an unreadable variant, inputs or outputs that differ
    between the variants of a model, one that is too slow to run in the router.
    """
    found: dict[str, dict[str, Manifest]] = {}
    problems: list[str] = []
    for name, model in policy.models.items():
        found[name] = {}
        for variant in model.variants:
            try:
                found[name][variant] = artifact.read(model.artifacts / variant).manifest
            except ArtifactError as error:
                problems.append(f"{source}: models.{name}: variant {variant!r}: {error}")
        problems += [f"{source}: models.{name}: {text}" for text in _mismatches(model, found[name])]
    if problems:
        raise MissingArtifact(problems)
    return found


def read_variants(policy: Policy, source: str = "policy") -> dict[str, dict[str, MeasuredVariant]]:
    """Every model's variants as the router weighs them. Raises `MissingArtifact`."""
    return {
        model: {name: MeasuredVariant(name, m.profile, m.quality_drop) for name, m in found.items()}
        for model, found in read_manifests(policy, source).items()
    }


def read_examples(policy: Policy) -> dict[str, Example]:
    """For each online model a row to try it with: one that an artifact keeps, else zeros.

    Raises `optimizers.artifact.ArtifactError`.
    """
    found: dict[str, Example] = {}
    for name, model in policy.models.items():
        for variant in model.online.variants if model.online else ():
            example = example_of(artifact.read(model.artifacts / variant, verify=False))
            if example.is_real or name not in found:
                found[name] = example
    return found


def _mismatches(model: ModelSection, manifests: Mapping[str, Manifest]) -> list[str]:
    problems = []
    first = next(iter(manifests.values()), None)
    for name, manifest in manifests.items():
        if first and (manifest.inputs, manifest.outputs) != (first.inputs, first.outputs):
            problems.append(f"variant {name!r} takes or gives other tensors than {first.variant!r}")
        row_ms = manifest.profile.predict_ms(1)
        own = model.online is not None and model.online.in_router and name in model.online.variants
        if own and row_ms > _MOST_IN_ROUTER_MS:
            problems.append(
                f"online.in_router: variant {name!r} takes {row_ms:.3g} ms for a row, and a router runs "
                f"only what takes {_MOST_IN_ROUTER_MS:g} ms or less; leave 'in_router' out"
            )
    return problems
