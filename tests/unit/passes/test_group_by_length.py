"""Groups by length: every row once, the cheapest cut there is, answers in the order of the questions."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizers.runtimes.grouping import by_length

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=9)


def _cost(groups: list[list[int]], call: int) -> int:
    return sum(call + len(g) * max(g) for g in groups)


@given(LENGTHS, st.integers(1, 100))
def test_every_row_is_in_one_group_and_no_cut_is_cheaper(lengths: list[int], call: int) -> None:
    groups = by_length(lengths, call)
    assert sorted(int(i) for g in groups for i in g) == list(range(len(lengths)))
    ordered = sorted(lengths)
    cuts = (c for k in range(len(ordered)) for c in combinations(range(1, len(ordered)), k))
    least = min(
        _cost([ordered[a:b] for a, b in zip((0, *c), (*c, len(ordered)), strict=True)], call) for c in cuts
    )
    assert _cost([[lengths[int(i)] for i in g] for g in groups], call) == least


def test_equal_lengths_stay_together_and_in_order() -> None:
    (group,) = by_length([7, 7, 7], 1)
    np.testing.assert_array_equal(group, [0, 1, 2])


def test_a_call_that_costs_much_is_not_repeated() -> None:
    assert len(by_length([1, 50, 2, 49], 1000)) == 1
    assert len(by_length([1, 50, 1, 50], 1)) == 2


def test_answers_come_back_in_the_order_of_the_questions() -> None:
    text = pytest.importorskip("optimizers.runtimes.text")

    class Encoder:
        def encode(self, batch: dict[str, np.ndarray]) -> list[Any]:
            return [text.Tokens([1] * len(item), [0] * len(item)) for item in batch["text"]]

        def pad(self, rows: list[Any]) -> dict[str, np.ndarray]:
            return {"length": np.array([len(row.ids) for row in rows])}

    class Network:
        outputs = ()
        network_inputs = frozenset({"length"})
        calls = 0

        def run(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            self.calls += 1
            return {"y": batch["length"] * 10}

    network = Network()
    runner = text.TextRunner(Encoder(), network, (), call_tokens=1)
    texts = np.array([b"a" * n for n in (30, 2, 9, 30, 1)], dtype=object)
    assert runner.run({"text": texts})["y"].tolist() == [300, 20, 90, 300, 10]
    assert network.calls > 1
