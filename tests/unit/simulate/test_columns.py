"""Requests from a trace's columns and from a mix: what may be said by name, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from router.simulate import columns, workload
from router.simulate.arrivals import TraceError
from router.simulate.columns import NOTHING, ColumnError, Said
from router.simulate.workload import MixError, Request, Share

SHARE = (Share("m", 50.0, 1, 1.0, "zoo", None, {b"x-tier": b"silver", b"x-a": b"1"}, {"explain": False}),)


def of(path: Path, **about: Any) -> list[Request]:
    return workload.asked(path, about.pop("shares", SHARE), 1, **about)


def test_each_column_says_one_thing_of_a_request_in_any_case() -> None:
    values = {
        "Model": "m",
        "BUDGET": "50ms",
        "rows": "3",
        "Tenant": "acme",
        "variant": "int8",
        "header.X-Tier": "gold",
        "Header.X-B": "2",
        "parameter.Explain": "true",
        "parameter.depth": "3",
        "parameter.tier": "gold",
        "parameter.text": '"3"',
    }
    assert columns.read(values) == Said(
        "m",
        50.0,
        3,
        "acme",
        "int8",
        {b"x-tier": b"gold", b"x-b": b"2"},
        {"Explain": True, "depth": 3, "tier": "gold", "text": "3"},
    )
    assert columns.read({"tenant": "", "header.X-Tier": None, "rows": ""}) == NOTHING


def test_a_parameter_with_a_type_keeps_it() -> None:
    given = {"parameter.a": "true", "parameter.b": 1, "parameter.c": True, "parameter.d": 0.5}
    assert columns.read(given, typed=True).parameters == {"a": "true", "b": 1, "c": True, "d": 0.5}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("tennant", "acme", "'tennant' says nothing about a request; did you mean 'tenant'?"),
        ("budgets", "1s", "did you mean 'budget'?"),
        ("headers", "x", "did you mean 'header.NAME'?"),
        ("ContextTokens", "5", "known here: model, budget, budget_ms, rows, tenant, variant, header.NAME"),
        ("header.", "x", "'' is not a header's name; write header.X-Tier"),
        ("header.X Tier", "x", "'X Tier' is not a header's name"),
        ("header.Tenant", "acme", "write it as 'tenant'"),
        ("header.Latency-Budget-Ms", "50", "write it as 'budget'"),
        ("header.Content-Length", "5", "the sender writes it itself"),
        ("parameter.timeout", "5", "write it as 'budget'"),
        ("header.X-Tier", "a\r\nB: c", "has a character that no header can carry"),
        ("header.X-Tier", "zlatý ☃", "has a character that no header can carry"),
        ("header.X-Tier", True, "write a text"),
        ("tenant", ["a"], "tenant is ['a']; write a text"),
        ("parameter.x", {"a": 1}, "write a text, a number, true or false"),
        ("rows", "0", "not a whole number of 1 or more"),
        ("rows", True, "not a whole number of 1 or more"),
        ("budget", "soon", "'soon' is not a duration"),
        ("budget_ms", [1], "budget_ms: "),
    ],
)
def test_a_name_or_value_that_is_none_is_refused_with_what_to_write(name: str, value: Any, said: str) -> None:
    with pytest.raises(ColumnError) as caught:
        columns.read({name: value}, typed=True)
    assert said in str(caught.value)


def test_a_line_says_what_it_says_and_the_mix_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time,tenant,header.X-Tier,parameter.explain\n0,acme,gold,true\n1,,,\n2,acme,,1\n")
    first, second, third = of(path)
    assert (first.tenant, first.headers, first.parameters) == (
        "acme",
        {b"x-tier": b"gold", b"x-a": b"1"},
        {"explain": True},
    )
    assert (second.tenant, second.headers, second.parameters) == ("zoo", SHARE[0].headers, {"explain": False})
    assert third.parameters["explain"] == 1 and third.parameters["explain"] is not True


def test_json_lines_keep_the_types_of_parameters(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"time": n, "parameter.x": x}) + "\n" for n, x in ((0, "1"), (1, 1))))
    assert [request.parameters["x"] for request in of(path)] == ["1", 1]


def test_a_column_that_names_nothing_is_told_by_file_and_line_unless_it_is_to_be_ignored(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time,tennant,Tokens\n0,acme,7\n")
    with pytest.raises(TraceError) as caught:
        of(path)
    assert str(caught.value).startswith(f"{path}:2: 'tennant' says nothing about a request; did you mean")
    (request,) = of(path, ignored=("tennant", "tokens"))
    assert request.tenant == "zoo"
    path.write_text("time,rows\n0,1,2\n")
    with pytest.raises(TraceError, match=r"t\.csv:2: it has more values than the first line has names"):
        of(path)


def test_the_wall_clock_is_the_traces_own_at_any_scale_or_starts_where_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("ts\n2026-01-15T22:00:00Z\n2026-01-15T23:00:00Z\n")
    dated = of(path, scale=60.0)
    assert [(r.at_ms, r.epoch_s) for r in dated] == [(0.0, 1_768_514_400.0), (60_000.0, 1_768_518_000.0)]
    assert [r.epoch_s for r in of(path, start_at_s=100.0)] == [100.0, 3_700.0]
    path.write_text("ts\n1768514400000\n1768514401000\n")
    assert [r.epoch_s for r in of(path)] == [1_768_514_400.0, 1_768_514_401.0]
    path.write_text("ts\n10\n11\n")
    assert [r.epoch_s for r in of(path)] == [None, None]
    made = workload.asked(None, SHARE, 1, seconds=1.0, start_at_s=50.0)
    assert made and all(r.epoch_s == 50.0 + r.at_ms / 1e3 for r in made)


def test_a_mix_names_what_has_no_place_after_the_counts() -> None:
    (plain, full) = workload.parse_mix(
        "m:50ms:9, m:1s:tenant=acme:header.X-Tier=gold:parameter.explain=true:variant=int8"
    )
    assert plain == Share("m", 50.0, 1, 9.0)
    headers, parameters = {b"x-tier": b"gold"}, {"explain": True}
    assert full == Share("m", 1_000.0, 1, 1.0, "acme", "int8", headers, parameters)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("m:50ms:tennant=acme", "did you mean 'tenant'?"),
        ("m:50ms:tenant=acme:9", "'9' is not NAME=VALUE"),
        ("m:50ms:tenant=", "'tenant=' is not NAME=VALUE"),
        ("m:50ms:header.X-Url=http://a", "'//a' is not NAME=VALUE; values with ':' or ',' need a trace"),
        ("m:50ms:rows=3", "model, budget and rows have no name in a mix"),
        ("m:tenant=a", "a mix is MODEL:BUDGET"),
    ],
)
def test_what_is_wrong_with_a_part_of_a_mix_is_told_with_its_form(text: str, said: str) -> None:
    with pytest.raises(MixError) as caught:
        workload.parse_mix(text)
    assert said in str(caught.value) and workload.FORM in str(caught.value)
