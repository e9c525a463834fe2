"""A policy held against the artifacts it names: every variant is there, whole, and fits the others."""

from __future__ import annotations

from collections.abc import Mapping

from optimizers import artifact
from optimizers.artifact import ArtifactError, Manifest
from router.estimate import Variant
from router.policy import Model, Policy, PolicyError


class MissingArtifact(PolicyError):
    """A variant that the policy names is not there, or cannot be read."""


def read_manifests(policy: Policy, source: str = "policy") -> dict[str, dict[str, Manifest]]:
    """Every variant's manifest, digests checked, and the policy checked against them.

    Raises `MissingArtifact` naming each problem: an unreadable variant, inputs or outputs that differ
    between the variants of a model, a batch beyond what was profiled.
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


def read_variants(policy: Policy, source: str = "policy") -> dict[str, dict[str, Variant]]:
    """Every model's variants as the router weighs them. Raises `MissingArtifact`."""
    return {
        model: {name: Variant(name, m.profile, m.quality_drop) for name, m in found.items()}
        for model, found in read_manifests(policy, source).items()
    }


def _mismatches(model: Model, manifests: Mapping[str, Manifest]) -> list[str]:
    problems = []
    first = next(iter(manifests.values()), None)
    for name, manifest in manifests.items():
        if first and (manifest.inputs, manifest.outputs) != (first.inputs, first.outputs):
            problems.append(f"variant {name!r} takes or gives other tensors than {first.variant!r}")
    return problems
