"""A smaller network learns its teacher's answers, softened by a temperature."""

import numpy as np
import pytest
import torch

from optimizers.formats.errors import PassError, RecipeError
from optimizers.formats.in_memory import predictor
from optimizers.passes.distill_network import DistillNetwork, distill_network, log_scores, soft_loss
from optimizers.task import Task
from tests.support.small_task import context, quality, small_task


@pytest.fixture(scope="module")
def task() -> Task:
    return small_task()


def test_student_is_smaller_and_nearly_as_good(task: Task) -> None:
    spec = DistillNetwork(architecture="small", epochs=12, learning_rate=1e-2)
    student = distill_network(task.model, spec, context(task))
    sizes = [sum(p.numel() for p in m.value.parameters()) for m in (task.model, student)]
    assert sizes[1] < 0.3 * sizes[0] and student.architecture == "small"
    assert quality(student, task) > quality(task.model, task) - 0.05
    test = task.test.inputs
    agreement = task.fidelity(predictor(student, task)(test), predictor(task.model, task)(test))
    assert agreement > 0.9


def test_loss_is_least_at_the_teachers_own_answers() -> None:
    rng = torch.Generator().manual_seed(0)
    teacher = torch.randn((8, 4), generator=rng)
    lesson = torch.cat([teacher.argmax(dim=1, keepdim=True).float(), teacher], dim=1)
    loss = soft_loss(temperature=3.0, weight=1.0)
    assert float(loss(teacher, lesson)) == pytest.approx(0, abs=1e-6)
    assert float(loss(teacher + torch.randn((8, 4), generator=rng), lesson)) > 0.01


def test_weight_zero_is_the_ordinary_loss() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    lesson = torch.tensor([[0.0, -5.0, 5.0], [1.0, 9.0, -9.0]])
    plain = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1]))
    torch.testing.assert_close(soft_loss(4.0, 0.0)(logits, lesson), plain)


def test_log_scores_give_the_probabilities_back() -> None:
    scores = np.array([[0.7, 0.3, 0.0], [0.2, 0.3, 0.5]], dtype=np.float32)
    again = torch.softmax(torch.from_numpy(log_scores(scores)), dim=1).numpy()
    np.testing.assert_allclose(again, scores, atol=1e-6)


def test_unknown_student_is_a_clear_error(task: Task) -> None:
    with pytest.raises(PassError, match="no architecture 'tiny'; it has original, small"):
        distill_network(task.model, DistillNetwork(architecture="tiny"), context(task))
    with pytest.raises(RecipeError, match="name the student"):
        DistillNetwork()
