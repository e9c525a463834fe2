"""Specs of the passes that make a model smaller: pruning, clustering, distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from optimizers.passes.spec import PassSpec, one_of, within


@dataclass(frozen=True)
class Prune(PassSpec):
    """Weights of least importance set to zero: ``sparsity`` of them, or all but ``n`` of every ``m``.

    ``importance`` is ``l1``, ``l2`` (size of the weight) or ``gradient`` (first-order Taylor over
    ``rows`` training rows). ``scope`` ranks weights of all layers together (``global``) or each
    ``layer``'s by itself; N:M and blocks are always per layer. With ``epochs`` the model is trained
    on; ``schedule`` says whether the sparsity is there from the start (``constant``) or grows over
    ``updates`` steps (``polynomial``).
    """

    kind: ClassVar[str] = "prune"
    sparsity: float = 0.8
    importance: str = "l1"
    pattern: str = "unstructured"
    scope: str = "global"
    n: int = 2
    m: int = 4
    block: tuple[int, int] = (4, 4)
    schedule: str = "constant"
    updates: int = 10
    epochs: int = 0
    learning_rate: float = 1e-3
    batch: int = 64
    rows: int = 512
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        one_of(self, "importance", "l1", "l2", "gradient")
        one_of(self, "pattern", "unstructured", "n:m", "block")
        one_of(self, "scope", "global", "layer")
        one_of(self, "schedule", "constant", "polynomial")
        within(self, "sparsity", 0, 0.999)
        within(self, "m", 2, 64)
        within(self, "n", 1, self.m - 1)
        within(self, "updates", 1, 1000)
        within(self, "rows", 1, 1_000_000)
        _training(self, least_epochs=0)
        if len(self.block) != 2 or min(self.block) < 1:
            raise self.refusal("block", f"two whole numbers from 1, not {self.block!r}")
        if self.schedule == "polynomial" and not self.epochs:
            raise self.refusal("schedule", "polynomial grows while training; give epochs too")


@dataclass(frozen=True)
class PruneChannels(PassSpec):
    """Whole channels removed: ``ratio`` of each layer's (``scope: layer``) or of all (``global``).

    Layers tied by a residual sum or a concatenation are cut together. At least ``least`` channels
    stay, and a multiple of ``round_to``. ``steps`` spreads the removal, each step followed by its
    part of ``epochs`` of training; importance and ``schedule`` as for ``prune``.
    """

    kind: ClassVar[str] = "prune_channels"
    ratio: float = 0.5
    importance: str = "l1"
    scope: str = "layer"
    steps: int = 1
    schedule: str = "constant"
    epochs: int = 5
    learning_rate: float = 1e-3
    batch: int = 64
    rows: int = 512
    least: int = 1
    round_to: int = 1
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        one_of(self, "importance", "l1", "l2", "gradient")
        one_of(self, "scope", "global", "layer")
        one_of(self, "schedule", "constant", "polynomial")
        within(self, "ratio", 0.001, 0.99)
        within(self, "steps", 1, 1000)
        within(self, "rows", 1, 1_000_000)
        within(self, "least", 1, 1_000_000)
        within(self, "round_to", 1, 1024)
        _training(self, least_epochs=0)
        if self.schedule == "constant" and self.steps > 1:
            raise self.refusal("steps", "more than one step needs schedule: polynomial")


@dataclass(frozen=True)
class Cluster(PassSpec):
    """Each weight tensor stored as an index into a code book of ``clusters`` values of its own.

    The values are found by k-means in one dimension. Layers with fewer than ``least`` weights are
    left alone. With ``epochs`` the code books are trained, the indices staying as they are.
    """

    kind: ClassVar[str] = "cluster"
    clusters: int = 16
    least: int = 256
    epochs: int = 0
    learning_rate: float = 1e-4
    batch: int = 64
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        within(self, "clusters", 2, 256)
        within(self, "least", 1, 1_000_000_000)
        _training(self, least_epochs=0)


@dataclass(frozen=True)
class DistillNetwork(PassSpec):
    """A smaller network that learns from the original's soft answers as well as from the targets.

    ``architecture`` names the student among the task's. The loss is ``weight`` times the divergence
    between both softened by ``temperature``, plus the rest times the ordinary loss.
    """

    kind: ClassVar[str] = "distill_network"
    architecture: str = ""
    temperature: float = 4.0
    weight: float = 0.9
    epochs: int = 20
    learning_rate: float = 2e-3
    batch: int = 64

    def __post_init__(self) -> None:
        within(self, "temperature", 0.1, 100)
        within(self, "weight", 0, 1)
        _training(self, least_epochs=1)
        if not self.architecture:
            raise self.refusal("architecture", "name the student, one of the task's architectures")


def _training(spec: PassSpec, least_epochs: int) -> None:
    """The fields that every pass with training in it has."""
    within(spec, "epochs", least_epochs, 1000)
    within(spec, "learning_rate", 1e-9, 10)
    within(spec, "batch", 1, 65_536)


@dataclass(frozen=True)
class DistillTree(PassSpec):
    """A decision tree fitted to the original's answers on ``rows`` training rows and ``resampled`` more.

    More resampled rows bring the tree nearer to its teacher and make it larger; ``max_depth``,
    ``max_leaves`` and ``min_leaf`` (training rows per leaf) bound it.
    """

    kind: ClassVar[str] = "distill_tree"
    rows: int = 50_000
    resampled: int = 10_000
    max_depth: int | None = None
    max_leaves: int | None = None
    min_leaf: int = 1

    def __post_init__(self) -> None:
        within(self, "rows", 1, 10_000_000)
        within(self, "resampled", 0, 10_000_000)
        within(self, "min_leaf", 1, 1_000_000)
        if self.max_depth is not None:
            within(self, "max_depth", 1, 64)
        if self.max_leaves is not None:
            within(self, "max_leaves", 2, 1_000_000)


@dataclass(frozen=True)
class DistillRules(PassSpec):
    """An ordered list of at most ``max_rules`` rules of at most ``max_conditions`` conditions each.

    Fitted to the original's answers on ``rows`` training rows and ``resampled`` more. A rule or a
    condition that improves less than a share ``worth`` of the answers is left out: fewer read better.
    """

    kind: ClassVar[str] = "distill_rules"
    rows: int = 50_000
    resampled: int = 10_000
    max_rules: int = 20
    max_conditions: int = 4
    worth: float = 0.0002

    def __post_init__(self) -> None:
        within(self, "rows", 1, 10_000_000)
        within(self, "worth", 0, 0.5)
        within(self, "resampled", 0, 10_000_000)
        within(self, "max_rules", 1, 1000)
        within(self, "max_conditions", 1, 32)
