"""Dead letters from the command line, on a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from click.testing import CliRunner, Result

from optimizers.tensors import pack
from router.cli.main import main
from workers.queue.contract import Failed
from workers.queue.embedded import EmbeddedServer
from workers.queue.job import JobState, NewJob
from workers.queue.redis.queue import RedisQueue

T = TypeVar("T")
POLICY = """
models:
  {model}: {{artifacts: none, batch: {{variant: v}}}}
  plain: {{artifacts: none, online: {{variants: [v]}}}}
redis: {{data: {data}}}
"""


class Operator:
    """A model's queue of its own, and the hand that types the commands."""

    def __init__(self, server: EmbeddedServer, model: str, policy: Path) -> None:
        self._url, self.model, self.policy = server.url, model, policy
        policy.write_text(POLICY.format(model=model, data=server.data_dir))

    def dead(self, verb: str, *rest: str, stdin: str = "") -> Result:
        command = ["dead", verb, str(self.policy), self.model, *rest]
        return CliRunner().invoke(main, command, input=stdin)

    def in_queue(self, body: Callable[[RedisQueue], Coroutine[Any, Any, T]]) -> T:
        async def run() -> T:
            queue = RedisQueue.open(self._url, self.model)
            try:
                return await body(queue)
            finally:
                await queue.close()

        return asyncio.run(run())

    def lose(self, *ids: str) -> None:
        """Have these jobs given up on, one after the other."""

        async def body(queue: RedisQueue) -> None:
            payload = pack({"image": np.zeros((2, 64), np.float32)})
            for id in ids:
                content = payload if id != "garbled" else b"not a message"
                await queue.submit([NewJob(id, content, 2, 60_000, max_attempts=1)])
                (lease,) = await queue.claim(1, 1_000, "host:1:worker")
                await queue.settle([Failed(id, lease.token, f"no such\nclass in {id}")])

        self.in_queue(body)

    def state(self, id: str) -> JobState | None:
        status = self.in_queue(lambda queue: queue.state(id))
        return None if status is None else status.state


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer.start(tmp_path_factory.mktemp("queue"), fsync="no") as running:
        yield running


@pytest.fixture
def operator(server: EmbeddedServer, tmp_path: Path, request: pytest.FixtureRequest) -> Operator:
    return Operator(server, request.node.name[:60], tmp_path / "policy.yaml")


def test_list_has_the_newest_first_and_says_how_many_more(operator: Operator) -> None:
    assert "has no dead letters" in operator.dead("list").output
    operator.lose("first", "second")
    told = json.loads(operator.dead("list", "--json").output)
    assert {letter["id"] for letter in told} == {"first", "second"}
    assert all(letter["failures"][0]["worker"] == "host:1:worker" for letter in told)
    lines = operator.dead("list", "--limit", "1").output.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("2 rows  failed 1 times; last: no such class in " + lines[0].split()[0])
    assert lines[1].startswith("1 of 2")


def test_show_tells_errors_who_ran_it_and_the_payloads_shape(operator: Operator) -> None:
    operator.lose("a", "garbled")
    shown = operator.dead("show", "a")
    assert shown.exit_code == 0
    assert "image float32 [2, 64]" in shown.output
    assert "host:1:worker: no such" in shown.output
    a, garbled = json.loads(operator.dead("show", "a", "garbled", "--json").output)
    assert a["payload"]["inputs"] == {"image": {"dtype": "float32", "shape": [2, 64]}}
    assert (a["attempts"], a["max_attempts"]) == (1, 1)
    assert "not a tensor message" in garbled["payload"]["error"]


def test_retry_queues_them_again_with_a_new_budget(operator: Operator) -> None:
    operator.lose("a", "b", "c")
    assert operator.dead("retry", "a", "--budget", "10min").output == "1 queued again\n"
    status = operator.in_queue(lambda queue: queue.state("a"))
    assert status is not None
    assert (status.state, status.attempts) == (JobState.PENDING, 0)
    assert status.deadline_ms - status.submitted_ms == 600_000
    assert operator.dead("retry", "--all", "--budget", "1h").output == "2 queued again\n"
    assert operator.state("c") is JobState.PENDING


def test_drop_asks_first_and_then_deletes(operator: Operator) -> None:
    operator.lose("a", "b")
    refused = operator.dead("drop", "a", stdin="n\n")
    assert refused.exit_code == 1
    assert operator.state("a") is JobState.DEAD
    assert operator.dead("drop", "a", stdin="y\n").exit_code == 0
    assert json.loads(operator.dead("drop", "--all", "--yes", "--json").output) == ["b"]
    assert (operator.state("a"), operator.state("b")) == (None, None)


def test_what_is_not_a_dead_letter_is_named_and_the_others_are_served(operator: Operator) -> None:
    operator.lose("a")
    for verb, rest in (("show", ()), ("retry", ("--budget", "1min")), ("drop", ("--yes",))):
        ended = operator.dead(verb, "nobody", *rest)
        assert ended.exit_code == 1
        assert "not a dead letter (any more): nobody" in ended.stderr
    ended = operator.dead("retry", "a", "nobody", "--budget", "1min")
    assert (ended.exit_code, ended.stdout) == (1, "1 queued again\n")
    assert operator.state("a") is JobState.PENDING


def test_the_dead_letters_are_those_of_the_policys_namespace(operator: Operator) -> None:
    operator.lose("a")
    policy = operator.policy.read_text()
    operator.policy.write_text(policy.replace("redis: {", "redis: {namespace: other, "))
    assert "no dead letters" in operator.dead("list").output
    operator.policy.write_text(policy.replace("redis: {", "redis: {namespace: hr, "))
    assert operator.dead("list").output.startswith("a  ")


def test_each_mistake_ends_in_one_sentence_and_its_own_code(operator: Operator, tmp_path: Path) -> None:
    operator.model = "plain"
    assert operator.dead("list").exit_code == 2
    assert "no model 'plain' with a batch side" in operator.dead("list").stderr
    for rest in ((), ("a", "--all")):
        assert operator.dead("retry", *rest, "--budget", "1min").exit_code == 2
    assert operator.dead("retry", "a", "--budget", "soon").exit_code == 2
    away = CliRunner().invoke(main, ["dead", "list", str(tmp_path / "none.yaml"), "m"])
    assert (away.exit_code, away.stderr.count("\n")) == (2, 1)


def test_a_server_that_is_not_there_is_said_with_its_own_code(operator: Operator, tmp_path: Path) -> None:
    ended = operator.dead("list", "--data", str(tmp_path / "nowhere"))
    assert ended.exit_code == 4
    assert "nowhere" in ended.stderr
