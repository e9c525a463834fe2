"""A changed policy file: taken over, refused, or handed to who replaces processes."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest

from router.policy import Reading, parse
from router.policy.changes import PolicyChange
from router.policy.reading import digest_of
from router.serving import policy_watch
from router.serving.policy_file import PolicyFile, follow

BASE = """
models:
  m: {artifacts: a, online: {variants: [v], replicas: 1}, batch: {variant: v}}
routes:
  - {name: first, to: auto}
tenants: {acme: {weight: 1}}
"""
KEY = "sha256:" + "0" * 64


class Changing:
    """A policy file in a folder, written as an editor does."""

    def __init__(self, folder: Path, text: str = BASE) -> None:
        self.path = folder / "p.yaml"
        self.path.write_text(text)
        self.file = PolicyFile(self.path, parse(text), digest_of(text))
        self._written = 0

    def write(self, text: str) -> None:
        self.path.write_text(text)
        self._written += 1
        # Two writes within the clock's grain would look like one.
        os.utime(self.path, ns=(self._written * 10**9, self._written * 10**9))

    def looked(self) -> PolicyChange:
        """What is found once the file has come to rest."""
        self.file.look()
        return self.file.look()


@pytest.fixture
def changing(tmp_path: Path) -> Changing:
    return Changing(tmp_path)


def test_nothing_has_changed(changing: Changing) -> None:
    assert changing.looked().outcome == "same"


def test_another_route_is_taken_over(changing: Changing) -> None:
    changing.write(BASE.replace("first", "second"))
    change = changing.looked()
    assert change.outcome == "applied"
    assert changing.file.policy.routes[0].name == "second"
    assert changing.looked().outcome == "same"


def test_a_file_still_being_written_is_left_alone(changing: Changing) -> None:
    changing.write(BASE[:40])
    assert changing.file.look().outcome == "same"
    changing.write(BASE.replace("first", "second"))
    assert changing.file.look().outcome == "same"
    assert changing.file.look().outcome == "applied"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BASE.replace("auto", "atuo"), "p.yaml:5: routes.0.to: "),
        ("models: [", "not valid YAML"),
        ("", "a policy is a mapping"),
    ],
)
def test_a_broken_file_is_refused_once_and_the_old_policy_stays(
    changing: Changing, text: str, problem: str
) -> None:
    changing.write(text)
    change = changing.looked()
    assert change.outcome == "refused"
    assert problem in (change.problem or "")
    assert changing.file.policy.routes[0].name == "first"
    assert changing.looked().outcome == "same"
    assert changing.file.state == "refused"
    pending = changing.file.pending
    assert pending is not None and problem in pending.problem, "it must stay visible"
    told = changing.file.describe()
    assert told["state"] == "refused"
    assert told["pending"].keys() == {"digest", "since"}
    assert told["pending"]["digest"] == digest_of(text) != told["digest"]


def test_a_file_that_is_gone_is_refused(changing: Changing) -> None:
    changing.path.unlink()
    assert "cannot read the policy file" in (changing.looked().problem or "")


def test_going_back_to_what_is_in_force_ends_the_problem(changing: Changing) -> None:
    changing.write("models: [")
    changing.looked()
    changing.write(BASE)
    assert changing.looked().outcome == "applied", "who watches must hear that the refusal is over"
    assert changing.file.describe() == {"digest": digest_of(BASE), "state": "applied", "pending": None}
    assert changing.looked().outcome == "same"


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        ("replicas: 1", "replicas: 2", "models.m.online.replicas"),
        ("batch: {variant: v}", "batch: {variant: v, workers: 2}", "models.m.batch.workers"),
        ("routes:", "  n: {artifacts: b, online: {variants: [v]}}\nroutes:", "models.n"),
        ("batch: {variant: v}", "batch: {variant: v, max_batch: 7}", "models.m.batch.max_batch"),
        ("weight: 1", "weight: 3", "tenants: a weight"),
        ("tenants:", "redis: {namespace: other}\ntenants:", "redis.namespace"),
    ],
)
def test_what_needs_other_processes_says_so(changing: Changing, before: str, after: str, key: str) -> None:
    changing.write(BASE.replace(before, after))
    change = changing.looked()
    assert change.outcome == changing.file.state == "needs redeploy"
    assert f"{key} changed" in (change.problem or "")
    assert changing.file.policy == parse(BASE)
    changing.file.deployed(change)
    assert changing.file.state == "applied"
    assert changing.file.policy == parse(BASE.replace(before, after))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("replicas: 1", "replicas: 1, in_time: 99%"),
        ("replicas: 1", "replicas: 1, max_batch: 7"),
        ("replicas: 1", "replicas: 1, max_waiting: 7"),
        ("replicas: 1", "replicas: 1, ready_within: 7min"),
        ("replicas: 1", "replicas: 1, rescue: {share: 0}"),
        ("batch: {variant: v}", "batch: {variant: v, max_attempts: 7}"),
    ],
)
def test_what_only_routers_use_replaces_no_process(changing: Changing, before: str, after: str) -> None:
    text = BASE.replace(before, after)
    changing.write(text)
    assert changing.looked().outcome == "applied"
    assert changing.file.policy == parse(text)


def test_the_last_key_cannot_be_taken_away_while_serving(tmp_path: Path) -> None:
    keyed = BASE.replace("weight: 1", f"keys: ['{KEY}']")
    changing = Changing(tmp_path, keyed)
    changing.write(BASE)
    assert "the last key is gone" in (changing.looked().problem or "")
    assert changing.file.policy.secured


async def test_a_follower_is_told_of_changes_only(changing: Changing) -> None:
    changes: list[PolicyChange] = []
    rounds = iter([None, BASE.replace("first", "second"), None, None, "models: [", None, None])

    class Over(Exception):
        pass

    async def sleep(_: float) -> None:
        try:
            text = next(rounds)
        except StopIteration:
            raise Over from None
        if text is not None:
            changing.write(text)

    with pytest.raises(Over):
        await follow(changing.file, changes.append, sleep=sleep)
    assert [change.outcome for change in changes] == ["applied", "refused"]


class Rounds(threading.Event):
    """Ends the watch after some looks, and changes the file before each."""

    def __init__(self, changing: Changing, texts: list[str | None]) -> None:
        super().__init__()
        self._changing, self._texts = changing, iter(texts)

    def wait(self, timeout: float | None = None) -> bool:
        text = next(self._texts, "end")
        if text == "end":
            return True
        if text is not None:
            self._changing.write(text)
        return False


def test_who_serves_in_the_foreground_is_told(changing: Changing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_watch, "read_manifests", lambda policy, path: {})
    said: list[str] = []
    deployed: list[Reading] = []
    texts = [
        BASE.replace("first", "second"),
        None,
        "models: [",
        None,
        BASE.replace("replicas: 1", "replicas: 2"),
        None,
    ]
    policy_watch.follow(
        changing.path,
        parse(BASE),
        digest_of(BASE),
        deployed.append,
        said.append,
        Rounds(changing, texts),
    )
    text = BASE.replace("replicas: 1", "replicas: 2")
    assert deployed == [Reading(parse(text), digest_of(text))]
    told = "\n".join(said)
    assert re.search(r"applied\npolicy \w+ refused, the old one stays:\n", told)
    assert "replacing processes" in told
    assert told.rstrip().endswith("s")
