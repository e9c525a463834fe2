"""Reading a policy: what a good file becomes, and that a bad one is told by file, line, key and mend."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from router.policy import DEFAULT_ROUTE, Policy, PolicyError, parse, read
from router.policy.conditions.bounds import BudgetCondition
from router.policy.terms.route_facts import RouteFacts

GOOD = """\
models:
  digits:
    artifacts: artifacts/digits
    online: {variants: [float32, int8, tree], replicas: 2}
    batch: {variant: int8, workers: 1, max_batch: 256, lease: 10s}
  words:
    artifacts: artifacts/words
    online: {variants: [float32]}
routes:
  - name: interactive
    when: {budget: "<= 250ms", model: digits}
    to: online
    quality: {max_drop: 0.02}
    on_miss: [degrade, reject]
  - name: bulk
    when: {budget: "> 30s"}
    to: batch
defaults: {budget: 2s, results: {keep: 24h}}
limits: {body: 16MiB, queue: {jobs: 1000, bytes: 4GiB}}
"""
MODEL = "models: {m: {artifacts: a, online: {variants: [v]}}}\n"


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(PolicyError) as caught:
        parse(dedent(text), "p.yaml")
    return caught.value.problems


def test_a_policy_is_read_with_units_and_defaults() -> None:
    policy = parse(GOOD)
    assert policy.defaults.budget == 2_000.0
    assert policy.defaults.results.keep == 24 * 3_600_000.0
    assert (policy.limits.body, policy.limits.queue.bytes) == (16 << 20, 4 << 30)
    digits = policy.models["digits"]
    assert digits.online is not None and digits.batch is not None
    assert (digits.online.replicas, digits.online.max_batch) == (2, 64)
    assert (digits.batch.lease, digits.batch.max_batch) == (10_000.0, 256)
    assert digits.variants == ("float32", "int8", "tree")
    assert policy.queued_models == ("digits",)


@pytest.mark.parametrize(
    ("model", "budget_ms", "route"),
    [
        ("digits", 250.0, "interactive"),
        ("digits", 250.1, "default"),
        ("words", 50.0, "default"),
        ("digits", 30_000.0, "default"),
        ("digits", 30_001.0, "bulk"),
        ("words", 60_000.0, "bulk"),
    ],
)
def test_the_first_route_whose_conditions_all_hold_is_taken(model: str, budget_ms: float, route: str) -> None:
    assert parse(GOOD).route(RouteFacts(model, 1, budget_ms)).name == route


BATCH = """\
models:
  m:
    artifacts: a
    batch:
      variant: v
      workers: {workers}
"""


@pytest.mark.parametrize(
    ("workers", "count"), [("3", 3), ("{min: 0, max: 4, idle: 5s}", 4), ("{min: 2, max: 2}", 2)]
)
def test_workers_are_a_number_or_a_range(workers: str, count: int) -> None:
    batch = parse(BATCH.format(workers=workers)).models["m"].batch
    assert batch is not None
    assert batch.worker_count == count
    if not isinstance(batch.workers, int):
        assert (batch.workers.min, batch.workers.idle) in ((0, 5_000.0), (2, 30_000.0))


@pytest.mark.parametrize(
    ("workers", "told"),
    [
        ("0", "p.yaml:6: models.m.batch.workers: Input should be greater than or equal to 1"),
        ("many", "p.yaml:6: models.m.batch.workers: Input should be a valid integer"),
        ("{min: 0}", "p.yaml:6: models.m.batch.workers.max: missing; it must be given"),
        ("{min: 3, max: 2}", "p.yaml:6: models.m.batch.workers: min is 3 and max 2; write min <= max"),
        ("{min: -1, max: 2}", "p.yaml:6: models.m.batch.workers.min: Input should be greater than"),
        ("{maxx: 2}", "p.yaml:6: models.m.batch.workers.maxx: unknown key; did you mean 'max'?"),
        ("{max: 2, idle: soon}", "p.yaml:6: models.m.batch.workers.idle: 'soon' is not a duration"),
    ],
)
def test_a_wrong_range_of_workers_is_told_by_its_key(workers: str, told: str) -> None:
    (problem,) = problems(BATCH.format(workers=workers))
    assert problem.startswith(told)


def test_a_request_that_no_route_takes_goes_to_auto_and_may_be_refused() -> None:
    assert parse(MODEL).route(RouteFacts("m", 1, 1_000.0)) is DEFAULT_ROUTE
    assert (DEFAULT_ROUTE.to, DEFAULT_ROUTE.on_miss) == ("auto", ("degrade", "reject"))


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("<= 250ms", (1, 250), (250.1,)),
        ("< 250ms", (249.9,), (250,)),
        ("> 250ms, <= 30s", (251, 30_000), (250, 30_001)),
        (">=1min", (60_000,), (59_999,)),
    ],
)
def test_a_budget_range_holds_within_its_bounds(
    text: str, inside: tuple[float, ...], outside: tuple[float, ...]
) -> None:
    bounds = BudgetCondition.model_validate(text)
    assert all(map(bounds.includes, inside))
    assert not any(map(bounds.includes, outside))


BAD = [
    ("models: [", "p.yaml:1: not valid YAML: "),
    ("a: b: c\n", "p.yaml:1: not valid YAML: "),
    ("when: 2026-13-45\n", "p.yaml: not valid YAML: month must be in 1..12"),
    ("a: \x07\n", "p.yaml: not valid YAML: unacceptable character"),
    ("? [a]\n: b\n", "p.yaml:1: not valid YAML: found unhashable key"),
    ("!!python/object:os.system {}\n", "p.yaml:1: not valid YAML: could not determine a constructor"),
    ("", "p.yaml: a policy is a mapping"),
    ("- a\n", "p.yaml: a policy is a mapping"),
    ("routes: []\n", "p.yaml:1: models: missing"),
    ("models: {}\n", "p.yaml:1: models: Dictionary should have at least 1 item"),
    ("models:\n  m:\n    artifacts: a\n", "p.yaml:2: models.m: a model needs an 'online' section"),
    ("models:\n  m:\n    online: {variants: [v]}\n", "p.yaml:2: models.m.artifacts: missing"),
    (MODEL + "rotues: []\n", "p.yaml:2: rotues: unknown key; did you mean 'routes'?"),
    (
        MODEL + "zzz: 1\n",
        "p.yaml:2: zzz: unknown key; known here: cors, defaults, limits, logs, models, redis, routes, "
        "tenants",
    ),
    (MODEL + MODEL, "p.yaml:2: key 'models' is given twice"),
    (MODEL + "limits:\n  body: 1\n  body: 2\n", "p.yaml:4: key 'body' is given twice"),
    (
        "models:\n  a/b: {artifacts: a, online: {variants: [v]}}\n",
        "p.yaml:2: models.a/b: String should",
    ),
    ("models:\n  m:\n    artifacts: a\n    online: {variants: []}\n", "p.yaml:4: models.m.online.variants:"),
    (
        "models:\n  m:\n    artifacts: a\n    online: {variants: [v], replicas: 0}\n",
        "p.yaml:4: models.m.online.replicas: Input should be greater than or equal to 1, got 0",
    ),
    (
        "models:\n  m:\n    artifacts: a\n    online: {variants: [v], in_router: true, replicas: 2}\n",
        "p.yaml:4: models.m.online: replicas is 2, and with in_router each router has one of its own",
    ),
    (
        "models:\n  m:\n    artifacts: a\n    online: {variants: [v], max_bach: 8}\n",
        "p.yaml:4: models.m.online.max_bach: unknown key; did you mean 'max_batch'?",
    ),
    (
        "models:\n  m:\n    artifacts: a\n    batch: {variant: v, lease: 10}\n    batc: 1\n",
        "p.yaml:5: models.m.batc: unknown key; did you mean 'batch'?",
    ),
    (MODEL + "defaults: {budget: 50}\n", None),
    (MODEL + "defaults:\n  budget: '50'\n", "p.yaml:3: defaults.budget: '50' is not a duration; write 50ms"),
    (MODEL + "defaults:\n  budget: null\n", "p.yaml:3: defaults.budget: None is not a duration"),
    (MODEL + "defaults:\n  budget: [1s]\n", "p.yaml:3: defaults.budget: ['1s'] is not a duration"),
    (MODEL + "defaults:\n  budget: 31d\n", "p.yaml:3: defaults.budget: a latency budget of '31d' is out of"),
    (MODEL + "limits:\n  body: 16 Mib\n", None),
    (MODEL + "limits:\n  body: lots\n", "p.yaml:3: limits.body: 'lots' is not a size; write 512KiB"),
    (MODEL + "limits:\n  body: {a: 1}\n", "p.yaml:3: limits.body: {'a': 1} is not a size"),
    (MODEL + "limits: 5\n", "p.yaml:2: limits: Input should be a valid dictionary"),
    (MODEL + "redis:\n  fsync: never\n", "p.yaml:3: redis.fsync: Input should be 'always' or 'everysec'"),
    (MODEL + "routes: 3\n", "p.yaml:2: routes: Input should be a valid tuple"),
    (MODEL + "routes:\n- {name: a}\n", "p.yaml:3: routes.0.to: missing"),
    (
        MODEL + "routes:\n- {name: a, to: gpu}\n",
        "p.yaml:3: routes.0.to: Input should be 'online'",
    ),
    (
        MODEL + "routes:\n- {name: a, to: auto}\n- {name: b, to: auto,\n   quality: {max_drop: 2}}\n",
        "p.yaml:5: routes.1.quality.max_drop: Input should be less than or equal to 1, got 2",
    ),
    (
        MODEL + "routes:\n- {name: a, to: auto}\n- {name: a, to: auto}\n",
        "p.yaml:4: routes.1.name: two routes are named 'a'; give each its own name",
    ),
    (
        MODEL + "routes:\n- {name: a, to: auto, when: {model: x}}\n",
        "p.yaml:3: routes.0.when.model: route 'a' names model 'x', which is not in 'models'; known here: m",
    ),
    (
        MODEL + "routes:\n- name: a\n  to: auto\n  when: {budget: about 5s}\n",
        "p.yaml:5: routes.0.when.budget: 'about 5s' is not a bound; write <, <=, > or >= and a duration",
    ),
    (
        MODEL + "routes:\n- name: a\n  to: auto\n  when: {budget: 5}\n",
        "p.yaml:5: routes.0.when.budget: 5 is not a bound on the budget; write '<= 250ms'",
    ),
    (
        MODEL + "routes:\n- name: a\n  to: auto\n  when: {budget: {max: 5s}}\n",
        "p.yaml:5: routes.0.when.budget: {'max': '5s'} is not a bound on the budget",
    ),
    (
        MODEL + "routes:\n- name: a\n  to: auto\n  when: {budget: '< 5'}\n",
        "p.yaml:5: routes.0.when.budget: '5' is not a duration",
    ),
    (
        MODEL + "routes:\n- name: a\n  to: auto\n  when: {bugdet: '< 5s'}\n",
        "p.yaml:5: routes.0.when.bugdet: unknown key; did you mean 'budget'?",
    ),
    (
        MODEL + "routes:\n- name: a\n  to: auto\n  on_miss: [degrade, shrug]\n",
        "p.yaml:5: routes.0.on_miss.1: Input should be 'degrade' or 'reject', got 'shrug'",
    ),
    (
        MODEL + "routes:\n- name: a b\n  to: auto\n",
        "p.yaml:3: routes.0.name: String should match pattern",
    ),
]


@pytest.mark.parametrize(("text", "start"), [case for case in BAD if case[1]])
def test_a_bad_policy_is_told_by_file_line_and_key_in_one_line(text: str, start: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith(start)
    assert "\n" not in problem
    assert "Traceback" not in problem


@pytest.mark.parametrize("text", [case[0] for case in BAD if case[1] is None])
def test_a_bare_number_of_seconds_and_a_unit_in_any_case_are_taken(text: str) -> None:
    assert isinstance(parse(text), Policy)


def test_every_problem_is_told_at_once() -> None:
    found = problems(
        """\
        models:
          m:
            artifacts: a
            online: {variants: [v], replicas: none}
        limits: {body: huge}
        """
    )
    assert [line.split(": ")[1] for line in found] == ["models.m.online.replicas", "limits.body"]


def test_a_misspelt_key_is_one_problem_and_not_a_missing_one_too() -> None:
    (problem,) = problems("models: {m: {artifcts: a, online: {variants: [v]}}}\n")
    assert problem == "p.yaml:1: models.m.artifcts: unknown key; did you mean 'artifacts'?"


def test_a_missing_key_is_told_beside_an_unknown_one_that_is_not_like_it() -> None:
    found = problems("models: {m: {colour: red, online: {variants: [v]}}}\n")
    assert {line.split(": ")[1] for line in found} == {"models.m.artifacts", "models.m.colour"}
    assert len(found) == 2


@pytest.mark.parametrize("name", ["online", "batch", "artifacts"])
def test_a_model_that_is_named_like_a_section_gets_the_right_hint(name: str) -> None:
    (problem,) = problems(f"models: {{{name}: {{artifcts: a, online: {{variants: [v]}}}}}}\n")
    assert problem.endswith("did you mean 'artifacts'?")


def test_a_file_that_refers_to_itself_is_an_error_not_a_crash() -> None:
    with pytest.raises(PolicyError):
        parse("models: &m {a: *m}\n")
    with pytest.raises(PolicyError):
        parse("[" * 500)


def test_a_file_that_cannot_be_read_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\n")
    for name, reason in [
        ("none.yaml", "No such file or directory"),
        ("", "Is a directory"),
        ("latin.yaml", "line 1 is not UTF-8 text: save it as UTF-8"),
    ]:
        path = tmp_path / name
        with pytest.raises(PolicyError) as caught:
            read(path)
        assert caught.value.problems == (f"{path}: cannot read the policy file: {reason}",)


def test_a_byte_order_mark_is_no_part_of_a_policy(tmp_path: Path) -> None:
    file = Path(__file__).parents[3] / "configs" / "digits.yaml"
    (tmp_path / "p.yaml").write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read(tmp_path / "p.yaml") == read(file)


def test_the_file_that_the_repository_brings_is_valid() -> None:
    policy = read(Path(__file__).parents[3] / "configs" / "digits.yaml")
    assert [route.name for route in policy.routes] == ["interactive", "bulk", "flexible"]


def test_a_policy_does_not_change_after_reading() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(MODEL).limits.rows = 5
