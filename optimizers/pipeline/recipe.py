"""What to make of a model: named variants, each a chain of passes, and the goals they should meet.

One frozen spec per technique, checked when it is made. :mod:`optimizers.passes.registry` maps each spec type
to the code that carries it out; :mod:`optimizers.pipeline.recipe_file` reads all of this from YAML. A spec
whose result depends on anything but its fields, its input model, the data and the seed would break
the cache, which is keyed by those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from optimizers.passes.spec import PassSpec as PassSpec
from optimizers.passes.spec import RecipeError as RecipeError
from optimizers.passes.spec import one_of, within
from optimizers.passes.spec_import import ImportOnnx
from optimizers.passes.spec_shrink import (
    Cluster,
    DistillNetwork,
    DistillRules,
    DistillTree,
    Prune,
    PruneChannels,
)

RUNTIME_NAMES = ("onnx", "openvino", "torch", "tensorrt", "trees", "rules")


@dataclass(frozen=True)
class QuantizeStatic(PassSpec):
    """Full integer quantization: weights, biases and activations, scales fixed by calibration.

    ``engine`` is ``onnx`` (ONNX Runtime's quantizer, QDQ format) or ``openvino`` (NNCF). The range
    of an activation is what ``calibration`` finds over ``rows`` training rows: its least and
    greatest value, its ``percentile``, or the threshold of least relative ``entropy`` (the last two
    with ``engine: onnx``). ``exclude`` names layers that stay float (shell patterns); ``keep_float``
    keeps that many more, the worst of a sensitivity scan.
    """

    kind: ClassVar[str] = "quantize_static"
    engine: str = "onnx"
    calibration: str = "minmax"
    percentile: float = 99.99
    rows: int = 256
    batch: int = 32
    per_channel: bool = True
    symmetric_weights: bool = True
    symmetric_activations: bool = False
    transformer: bool = False
    exclude: tuple[str, ...] = ()
    keep_float: int = 0

    def __post_init__(self) -> None:
        one_of(self, "engine", "onnx", "openvino")
        one_of(self, "calibration", "minmax", "percentile", "entropy")
        within(self, "percentile", 50, 100)
        within(self, "rows", 1, 1_000_000)
        within(self, "batch", 1, 65_536)
        within(self, "keep_float", 0, 10_000)
        if self.engine == "openvino" and self.calibration != "minmax":
            raise self.refusal(
                "calibration",
                "NNCF chooses its range estimators itself; leave out calibration, or set engine: onnx",
            )


@dataclass(frozen=True)
class QuantizeDynamic(PassSpec):
    """Partial quantization: int8 weights, activations quantized as they come (ONNX Runtime).

    ``ops`` are the ONNX operators to quantize; only those whose weight is a constant are. No
    calibration data is needed. Fastest on matrix products; convolutions usually lose time by it.
    """

    kind: ClassVar[str] = "quantize_dynamic"
    ops: tuple[str, ...] = ("MatMul", "Gemm")
    per_channel: bool = True
    reduce_range: bool = False
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.ops:
            raise self.refusal("ops", "name at least one ONNX operator")


@dataclass(frozen=True)
class QuantizeWeights(PassSpec):
    """Weights only: stored as ``bits`` bit integers with a scale, computed with in float.

    4 bits are for matrix products with constant weights, in blocks of ``block`` values, with the
    runtime's own kernel (MatMulNBits); 8 bits for any weight, unpacked as the model is loaded: a
    smaller file at the speed of float.
    """

    kind: ClassVar[str] = "quantize_weights"
    bits: int = 8
    symmetric: bool = True
    per_channel: bool = True
    block: int = 32
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        one_of(self, "bits", 4, 8)
        one_of(self, "block", 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class QuantizeAware(PassSpec):
    """Fine-tuning with rounding in the forward pass, so that the weights learn to bear it.

    The result is still float: let ``quantize_static`` follow. Learning uses the straight-through
    estimator: rounding counts as the identity in the backward pass.
    """

    kind: ClassVar[str] = "quantize_aware"
    epochs: int = 3
    learning_rate: float = 1e-4
    batch: int = 64
    weight_bits: int = 8
    activation_bits: int = 8
    per_channel: bool = True

    def __post_init__(self) -> None:
        within(self, "epochs", 1, 1000)
        within(self, "learning_rate", 1e-9, 10)
        within(self, "batch", 1, 65_536)
        within(self, "weight_bits", 2, 8)
        within(self, "activation_bits", 2, 8)


@dataclass(frozen=True)
class Cast(PassSpec):
    """Half-width floats: ``bfloat16`` (torch, OpenVINO) or ``float16`` (ONNX, stored; torch on CUDA)."""

    kind: ClassVar[str] = "cast"
    to: str = "bfloat16"

    def __post_init__(self) -> None:
        one_of(self, "to", "bfloat16", "float16")


@dataclass(frozen=True)
class FineTune(PassSpec):
    """A few more epochs of training, e.g. to mend what a pass before it cost."""

    kind: ClassVar[str] = "fine_tune"
    epochs: int = 3
    learning_rate: float = 5e-4
    batch: int = 64

    def __post_init__(self) -> None:
        within(self, "epochs", 1, 1000)
        within(self, "learning_rate", 1e-9, 10)
        within(self, "batch", 1, 65_536)


@dataclass(frozen=True)
class GroupByLength(PassSpec):
    """Rows of a text batch run in groups of similar length, so that less padding is computed.

    The network stays as it is. A batch is cut where the padding saved is worth another call, which
    costs about as much as ``call_tokens`` tokens.
    """

    kind: ClassVar[str] = "group_by_length"
    call_tokens: int = 32

    def __post_init__(self) -> None:
        within(self, "call_tokens", 1, 1_000_000)


#: Name in a recipe file -> spec. Every technique has its line here.
SPECS: dict[str, type[PassSpec]] = {
    spec.kind: spec
    for spec in (
        QuantizeStatic,
        QuantizeDynamic,
        QuantizeWeights,
        QuantizeAware,
        Cast,
        FineTune,
        GroupByLength,
        ImportOnnx,
        DistillTree,
        DistillRules,
        DistillNetwork,
        Prune,
        PruneChannels,
        Cluster,
    )
}


@dataclass(frozen=True)
class Goal:
    """A bound on a measured figure of a variant; just one of ``at_most`` and ``at_least``.

    Figures: ``<metric>``, ``quality_drop``, ``fidelity``, ``size_ratio`` (original over variant),
    ``speedup_<n>`` (original's median at batch n over the variant's), ``latency_ms_<n>``,
    ``size_bytes``, ``sparsity``.
    """

    figure: str
    at_most: float | None = None
    at_least: float | None = None

    def __post_init__(self) -> None:
        if (self.at_most is None) == (self.at_least is None):
            raise RecipeError(f"goal {self.figure!r}: give either at_most or at_least")

    def holds(self, value: float) -> bool:
        if math.isnan(value):
            return False
        return value <= self.at_most if self.at_most is not None else value >= (self.at_least or 0.0)

    def shortfall(self, value: float) -> float:
        """How far ``value`` is from meeting the goal, relative to the bound; 0 where it holds."""
        if self.holds(value):
            return 0.0
        bound = self.at_most if self.at_most is not None else self.at_least
        return abs(value - (bound or 0.0)) / max(abs(bound or 0.0), 1e-9)

    def __str__(self) -> str:
        sign, bound = ("at most", self.at_most) if self.at_most is not None else ("at least", self.at_least)
        return f"{self.figure} {sign} {bound:g}"


@dataclass(frozen=True)
class Search:
    """Try values of one pass's fields, in the order given, until the goals hold or tries run out.

    ``step`` counts the variant's passes from 0. Every combination of ``values`` is a candidate. They
    are judged on the validation data; the variant that is kept is then measured like any other.
    """

    step: int = 0
    values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    tries: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.tries <= 1000:
            raise RecipeError(f"must be from 1 to 1000, not {self.tries}", "tries")
        if not self.values or any(not v for v in self.values.values()):
            raise RecipeError("name at least one field and at least one value for each", "values")


@dataclass(frozen=True)
class Variant:
    """One variant: its passes in order, the runtime it is packed for, and that runtime's settings."""

    name: str
    passes: tuple[PassSpec, ...] = ()
    runtime: str = ""
    threads: int = 1
    device: str = "cpu"
    compile: bool = False
    goals: tuple[Goal, ...] = ()
    search: Search | None = None

    def __post_init__(self) -> None:
        if self.runtime and self.runtime not in RUNTIME_NAMES:
            raise RecipeError(f"{self.runtime!r} is not one of {', '.join(RUNTIME_NAMES)}", "runtime")
        if self.threads < 1:
            raise RecipeError(f"must be 1 or more, not {self.threads}", "threads")
        if self.device not in ("cpu", "cuda"):
            raise RecipeError(f"{self.device!r} is neither cpu nor cuda", "device")
        if self.search and not 0 <= self.search.step < len(self.passes):
            raise RecipeError(
                f"{self.search.step} is no pass; there are {len(self.passes)}, from 0", "search", "step"
            )


@dataclass(frozen=True)
class Latency:
    """How latency is measured: which batch sizes (rows), and about how long in all, per variant."""

    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if not self.batches or list(self.batches) != sorted(set(self.batches)) or self.batches[0] != 1:
            raise RecipeError("whole numbers that ascend from 1", "batches")
        if not 0 < self.seconds <= 3600:
            raise RecipeError(f"must be in (0, 3600], not {self.seconds}", "seconds")


@dataclass(frozen=True)
class Recipe:
    """Everything that :func:`optimizers.pipeline.pipeline.run` needs, apart from where to write.

    ``task`` is ``module:function``, which gives an :class:`optimizers.task.Task`; it runs that code,
    so a recipe deserves the trust of a program. ``data`` is a folder of data files for tasks that take
    one, or empty. The variant ``original`` names is what the others
    are compared with: the first without passes.
    """

    name: str
    task: str
    variants: tuple[Variant, ...]
    goals: tuple[Goal, ...] = ()
    latency: Latency = field(default_factory=Latency)
    seed: int = 0
    data: str = ""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise RecipeError(f"must be 0 or more, not {self.seed}", "seed")
        names = [v.name for v in self.variants]
        if len(names) != len(set(names)):
            raise RecipeError(f"a name stands twice in {names}", "variants")
        if not any(not v.passes for v in self.variants):
            raise RecipeError(
                "one without passes must be there, to compare the others with; add float32: {}", "variants"
            )

    @property
    def original(self) -> Variant:
        """The variant that the others are compared with: the first without passes."""
        return next(v for v in self.variants if not v.passes)
