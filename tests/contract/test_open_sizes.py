"""Requests of different open sizes that reach a busy replica are all answered. Over HTTP, without Ray."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from optimizers.tensors import TensorSpec
from tests.support import tiny_onnx
from tests.support.in_process import in_process
from tests.support.virtual_time import settled

POLICY = """
models:
  tiny:
    artifacts: tiny
    online: {variants: [v], max_batch: 8}
"""


async def test_ids_of_different_lengths_are_answered_while_the_replica_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, total = TensorSpec("ids", "INT64", (-1, -1)), TensorSpec("total", "INT64", (-1,))
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    node = helper.make_node("ReduceSum", ["ids", "axes"], ["total"], keepdims=0)
    example = {"ids": np.array([[1, 2, 3]])}
    tiny_onnx.write(
        tmp_path / "tiny", tiny_onnx.graph([node], [ids], [total], [axes]), [ids], [total], example
    )
    (tmp_path / "policy.yaml").write_text(POLICY)
    monkeypatch.chdir(tmp_path)
    async with in_process(tmp_path / "policy.yaml") as app:
        app.machine.gate.clear()
        sizes = [3, 3, 5, 7, 5, 7]
        tasks = []
        for size in sizes:
            rows = np.ones((1, size), np.int64)
            tasks.append(asyncio.create_task(app.infer(rows, budget="60000")))
            await settled(50)
        app.machine.gate.set()
        answers = await asyncio.gather(*tasks)
    assert [answer.status_code for answer in answers] == [200] * 6
    assert [answer.json()["outputs"][0]["data"] for answer in answers] == [[size] for size in sizes]
    assert [rows for _, rows in app.machine.rows] == [1, 1, 2, 2]
