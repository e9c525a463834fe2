"""Pruning: the pattern asked for is the one that comes out, and shapes stay whole around cut channels."""

import numpy as np
import pytest
import torch
from torch import nn

from optimizers.formats.errors import PassError
from optimizers.formats.serialization import reshape
from optimizers.passes import prune_masks
from optimizers.passes.importance import gradients, prunable
from optimizers.passes.prune import Prune, prune
from optimizers.passes.prune_channels import PruneChannels, prune_channels
from optimizers.task import Task, TaskModel
from tests.support.small_task import Branches, context, quality, small_task


@pytest.fixture(scope="module")
def task() -> Task:
    task = small_task()
    assert quality(task.model, task) > 0.95
    return task


def zeros(model: TaskModel) -> dict[str, float]:
    return {name: float((w == 0).double().mean()) for name, w in prunable(model.value).items()}


@pytest.mark.parametrize("importance", ["l1", "l2", "gradient"])
def test_wanted_share_is_at_zero_and_the_original_untouched(task: Task, importance: str) -> None:
    before = {name: tensor.clone() for name, tensor in task.model.value.state_dict().items()}
    pruned = prune(task.model, Prune(sparsity=0.6, importance=importance), context(task))
    assert pruned.notes["sparsity"] == pytest.approx(0.6, abs=0.001)
    for name, tensor in task.model.value.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_largest_weights_stay_as_they_were(task: Task) -> None:
    pruned = prune(task.model, Prune(sparsity=0.5, scope="layer"), context(task))
    for name, weight in prunable(task.model.value).items():
        after = prunable(pruned.value)[name]
        assert torch.equal(after[after != 0], weight[after != 0])
        assert weight[after == 0].abs().max() <= weight[after != 0].abs().min()


def test_importance_by_gradient_is_first_order_taylor(task: Task) -> None:
    """Of a linear layer under cross-entropy the gradient is known: (softmax - target) times input."""
    torch.manual_seed(0)
    linear = nn.Linear(64, 4)
    layer = nn.Sequential(nn.Flatten(), linear)
    got = gradients(layer, prunable(layer), context(task), rows=16)["1.weight"]
    rows = np.linspace(0, len(task.train) - 1, 16).astype(int)
    x = task.train.inputs["image"][rows].reshape(16, 64)
    assert task.train.targets is not None
    share = torch.softmax(layer(torch.from_numpy(x)), dim=1).detach().numpy()
    slopes = (share - np.eye(4)[task.train.targets[rows]])[:, :, None] * x[:, None, :]
    wanted = np.abs(linear.weight.detach().numpy() * slopes).sum(axis=0)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-7)


def test_weight_without_gradient_goes_before_a_small_one_with(task: Task) -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(64, 4), nn.Linear(64, 4)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.used(image.flatten(1))  # type: ignore[no-any-return]

    module = Deaf()
    with torch.no_grad():
        module.unused.weight.fill_(100.0)
    pruned = prune(task.model.becomes(module), Prune(sparsity=0.5, importance="gradient"), context(task))
    assert zeros(pruned) == {"used.weight": 0.0, "unused.weight": 1.0}


def test_n_of_m_along_the_input_channels(task: Task) -> None:
    pruned = prune(task.model, Prune(pattern="n:m"), context(task))
    inner = pruned.value.inner.weight.detach().numpy()
    kept = (inner != 0).transpose(0, 2, 3, 1).reshape(-1, 4).sum(axis=1)
    assert set(kept.tolist()) == {2}
    assert zeros(pruned)["stem.weight"] == 0, "one input channel is no multiple of four: dense"


def test_blocks_go_whole(task: Task) -> None:
    pruned = prune(task.model, Prune(pattern="block", sparsity=0.5, block=(4, 4)), context(task))
    matrix = prune_masks.as_matrix(pruned.value.inner.weight.detach().numpy())
    filled = (matrix != 0).reshape(4, 4, -1, 4).sum(axis=(1, 3))
    assert set(filled.ravel().tolist()) == {0, 16}


@pytest.mark.parametrize("schedule", ["constant", "polynomial"])
def test_training_mends_and_zeros_stay(task: Task, schedule: str) -> None:
    at_once = prune(task.model, Prune(sparsity=0.8), context(task))
    spec = Prune(sparsity=0.8, schedule=schedule, epochs=6, updates=4, learning_rate=5e-3)
    trained = prune(task.model, spec, context(task))
    assert trained.notes["sparsity"] == pytest.approx(0.8, abs=0.001)
    assert quality(trained, task) > quality(at_once, task) + 0.1
    assert quality(trained, task) > 0.9


def test_more_updates_than_steps_still_reaches_the_sparsity(task: Task) -> None:
    spec = Prune(sparsity=0.7, schedule="polynomial", epochs=1, updates=500, batch=256)
    assert prune(task.model, spec, context(task)).notes["sparsity"] == pytest.approx(0.7, abs=0.001)


def test_channels_are_cut_through_sum_concatenation_and_flattening(task: Task) -> None:
    cut = prune_channels(task.model, PruneChannels(ratio=0.5, epochs=0), context(task)).value
    assert (cut.stem.out_channels, cut.inner.out_channels, cut.norm.num_features) == (8, 8, 8)
    assert (cut.side.out_channels, cut.joined.in_channels, cut.joined.out_channels) == (4, 12, 8)
    assert (cut.head.in_features, cut.head.out_features) == (32, 4)
    assert cut(torch.zeros(3, 1, 8, 8)).shape == (3, 4)
    assert task.model.value.stem.out_channels == 16


def test_channel_that_does_nothing_is_cut_without_a_trace(task: Task) -> None:
    """Silent channels of every importance's reckoning: cutting just them leaves each answer as it was."""
    module = Branches()
    silent = [0, 3, 7, 9]
    with torch.no_grad():
        module.side.weight[silent[:2]] = 0
        module.side.bias[silent[:2]] = 0  # type: ignore[index]
        module.joined.weight[silent] = 0
        module.joined.bias[silent] = 0  # type: ignore[index]
        module.head.weight[:, [c * 4 + k for c in silent for k in range(4)]] = 0
        module.joined.weight[:, [16 + silent[0], 16 + silent[1]]] = 0
    model = task.model.becomes(module.eval())
    spec = PruneChannels(ratio=0.25, epochs=0, exclude=("stem", "inner"))
    cut = prune_channels(model, spec, context(task)).value
    assert (cut.joined.out_channels, cut.side.out_channels, cut.stem.out_channels) == (12, 6, 16)
    images = torch.from_numpy(task.test.inputs["image"][:16])
    torch.testing.assert_close(cut(images), module(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "spec",
    [
        PruneChannels(epochs=6, learning_rate=5e-3),
        PruneChannels(epochs=6, learning_rate=5e-3, importance="gradient", scope="global", least=4),
        PruneChannels(epochs=6, learning_rate=5e-3, steps=2, schedule="polynomial", importance="l2"),
    ],
)
def test_cut_network_learns_again(task: Task, spec: PruneChannels) -> None:
    cut = prune_channels(task.model, spec, context(task))
    assert quality(cut, task) > quality(task.model, task) - 0.05
    before = sum(p.numel() for p in task.model.value.parameters())
    assert sum(p.numel() for p in cut.value.parameters()) < 0.7 * before


def test_counts_are_rounded_up_and_have_a_floor(task: Task) -> None:
    cut = prune_channels(task.model, PruneChannels(ratio=0.6, epochs=0, round_to=4), context(task)).value
    assert (cut.stem.out_channels, cut.side.out_channels) == (8, 4)
    cut = prune_channels(task.model, PruneChannels(ratio=0.9, epochs=0, least=5), context(task)).value
    assert (cut.stem.out_channels, cut.side.out_channels) == (5, 5)


def test_cut_weights_load_into_the_architecture_they_came_from(task: Task) -> None:
    cut = prune_channels(task.model, PruneChannels(epochs=0), context(task)).value
    again = Branches()
    reshape(again, cut.state_dict())
    again.load_state_dict(cut.state_dict())
    images = torch.from_numpy(task.test.inputs["image"][:4])
    torch.testing.assert_close(again.eval()(images), cut(images))


def test_nothing_to_cut_is_a_clear_error(task: Task) -> None:
    alone = task.model.becomes(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    with pytest.raises(PassError, match="no channel could be removed"):
        prune_channels(alone, PruneChannels(epochs=0), context(task))
    with pytest.raises(PassError, match="no linear or convolution layer"):
        prune(alone, Prune(exclude=("1",)), context(task))
