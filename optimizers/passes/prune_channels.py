"""The pass ``prune_channels``: whole channels removed, so that the model is smaller and faster.

Channels hang together: what a residual sum adds must have equal counts, what a concatenation joins
shifts the rest, a flattening multiplies. Torch-Pruning (MIT; Fang et al., "DepGraph: towards any
structural pruning", CVPR 2023) finds those groups by tracing and cuts them; it is used through its
dependency graph alone. Importance, shares, schedule and training are this project's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np

from optimizers.formats import answers
from optimizers.formats.errors import PassError
from optimizers.passes.importance import prunable, score
from optimizers.passes.prune_masks import sparsity_at, top_k
from optimizers.passes.technique import PassSpec, Technique, check_training, one_of, within
from optimizers.passes.training import fit
from optimizers.task import PassContext, TaskModel
from optimizers.tensors import Array


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
        check_training(self, least_epochs=0)
        if self.schedule == "constant" and self.steps > 1:
            raise self.refusal("steps", "more than one step needs schedule: polynomial")


def prune_channels(model: TaskModel, spec: PruneChannels, context: PassContext) -> TaskModel:
    """``model`` without its least important channels; the notes say how many each layer has left.

    Removed in ``spec.steps`` steps, with an equal part of ``spec.epochs`` of training after each.
    Raises :class:`PassError` where nothing can be removed or the outputs' shape would change.
    """
    import torch

    module = copy.deepcopy(model.value)
    example = _example(model, context)
    before = _widths(module)
    with torch.no_grad():
        shapes = _shapes(module(*example))
    for step in range(1, spec.steps + 1):
        gone = sparsity_at(step, spec.steps, spec.ratio, spec.schedule)
        _cut(module, example, spec, gone, before, context)
        context.progress(f"step {step}/{spec.steps}: {gone:.0%} of the channels removed")
        epochs = spec.epochs * step // spec.steps - spec.epochs * (step - 1) // spec.steps
        if epochs:
            fit(
                module,
                context.task.train,
                epochs=epochs,
                learning_rate=spec.learning_rate,
                batch=spec.batch,
                seed=context.seed + step,
                progress=lambda epoch, loss: context.progress(f"fine-tuning, loss {loss:.4f}"),
            )
    with torch.no_grad():
        after = _shapes(module.eval()(*example))
    if after != shapes:
        raise PassError(f"pruning would change the output from {shapes} to {after}; exclude its layer")
    widths = _widths(module)
    if widths == before:
        raise PassError(
            "no channel could be removed: every layer is excluded, feeds the output or is at its least"
        )
    return model.becomes(module, structure={"channels": {n: [before[n], widths[n]] for n in widths}})


def _cut(
    module: Any,
    example: Sequence[Any],
    spec: PruneChannels,
    gone: float,
    original: dict[str, int],
    context: PassContext,
) -> None:
    """Remove channels from every group until ``gone`` of those it had at first are gone."""
    import torch
    import torch_pruning

    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    module.requires_grad_(True)  # the tracing follows gradients
    names = {layer: name for name, layer in module.named_modules()}
    weights = prunable(module)
    scores = score(module, weights, spec.importance, context, spec.rows)
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(
            module, example_inputs=tuple(example), output_transform=answers.every, verbose=False
        )
        kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
        groups = [
            group
            for group in graph.get_all_groups(root_module_types=kinds)
            if _may_shrink(graph, group, names, spec.exclude)
        ]
        ranked = [_group_score(graph, group, names, scores, spec.importance) for group in groups]
        firsts = [original[names[group[0].dep.target.module]] for group in groups]
        keeps = _keep(ranked, firsts, gone, spec)
        for group, keep in zip(groups, keeps, strict=True):
            drop = np.flatnonzero(~keep).tolist()
            if drop:
                root = group[0].dep
                graph.get_pruning_group(root.target.module, root.handler, drop).prune()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in frozen)


def _keep(ranked: list[Array], firsts: list[int], gone: float, spec: PruneChannels) -> list[Array]:
    """Which channels of each group stay. ``firsts`` is how many each had before the first step."""
    floors = [min(max(spec.least, spec.round_to), len(scores)) for scores in ranked]
    if spec.scope == "layer":
        wanted = [first - int(first * gone + 1e-9) for first in firsts]
    else:
        flat = np.concatenate(ranked) if ranked else np.zeros(0)
        total = sum(firsts)
        stay = top_k(flat, min(total - int(total * gone + 1e-9), len(flat)))
        wanted = [int(part.sum()) for part in np.split(stay, np.cumsum([len(r) for r in ranked])[:-1])]
    counts = []
    for count, floor, scores in zip(wanted, floors, ranked, strict=True):
        rounded = -(-count // spec.round_to) * spec.round_to  # upwards: never fewer than asked for
        counts.append(min(max(rounded, floor), len(scores)))
    return [top_k(scores, count) for scores, count in zip(ranked, counts, strict=True)]


def _may_shrink(graph: Any, group: Any, names: dict[Any, str], exclude: Sequence[str]) -> bool:
    """Whether a group may lose channels: not excluded, not the output, and of layers we can cut."""
    import torch

    for dep, _ in group:
        layer = dep.target.module
        out = graph.is_out_channel_pruning_fn(dep.handler)
        if out and not dep.target.outputs:
            return False  # its channels are the model's output
        name = names.get(layer)
        if out and name is not None and any(fnmatchcase(name, pattern) for pattern in exclude):
            return False
        # Channels of these come in sets that must stay equal; cutting any few of them would not.
        if isinstance(layer, torch.nn.GroupNorm | torch.nn.MultiheadAttention | torch.nn.RNNBase):
            return False
        if getattr(layer, "groups", 1) not in (1, getattr(layer, "out_channels", 1)):
            return False
        if isinstance(layer, torch.nn.Parameter):
            return False  # one outside the known layers: what its axes mean is not known
    return True


def _group_score(graph: Any, group: Any, names: dict[Any, str], scores: dict[str, Array], how: str) -> Array:
    """One importance per channel of the group's root: that of all weights that go with the channel.

    Taylor terms are losses and simply add up. Sizes of weights mean nothing across layers, so each
    layer's are scaled to a mean of 1 first.
    """
    total = np.zeros(len(group[0].idxs))
    for item in group:
        layer = item.dep.target.module
        key = f"{names.get(layer, '')}.weight".lstrip(".")
        if layer not in names or key not in scores:
            continue
        per_weight = scores[key]
        if graph.is_out_channel_pruning_fn(item.dep.handler):
            per_channel = per_weight.reshape(len(per_weight), -1).sum(axis=1)
        elif per_weight.shape[1] > 1 or getattr(layer, "groups", 1) == 1:
            per_channel = np.moveaxis(per_weight, 1, 0).reshape(per_weight.shape[1], -1).sum(axis=1)
        else:
            continue
        per_channel = per_channel[np.asarray(item.idxs)]
        if how != "gradient":
            per_channel = per_channel / max(float(per_channel.mean()), 1e-30)
        np.add.at(total, np.asarray(item.root_idxs), per_channel)
    return total


def _example(model: TaskModel, context: PassContext) -> tuple[Any, ...]:
    """Two real rows of the network's inputs, as torch tensors in the order of the specs."""
    import torch

    inputs = context.task.network_inputs(context.task.train.take(2).inputs)
    return tuple(torch.from_numpy(np.ascontiguousarray(inputs[spec.name])) for spec in model.inputs)


def _shapes(outputs: Any) -> list[tuple[int, ...]]:
    return [tuple(value.shape) for value in answers.every(outputs)]


def _widths(module: Any) -> dict[str, int]:
    """Output channels of each linear and convolution layer, by the layer's name."""
    return {name.removesuffix(".weight"): int(w.shape[0]) for name, w in prunable(module).items()}


TECHNIQUE = Technique(PruneChannels, ("torch",), prune_channels)
