"""`hybrid-router bench` against a real server: real arrivals, prediction beside truth in one table."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from router.cli.main import main
from tests.acceptance.conftest import Served

MIX = "digits:500ms:9,digits:2min:1:16"


def test_the_same_arrivals_are_simulated_and_replayed_and_stand_side_by_side(
    served: Served, policy: Path, tmp_path: Path
) -> None:
    load = ["--rate", "60", "--seconds", "4", "--mix", MIX, "--seed", "11"]
    predicted, measured = tmp_path / "predicted.json", tmp_path / "measured.json"
    simulated = CliRunner().invoke(main, ["simulate", str(policy), *load, "--json", str(predicted)])
    assert simulated.exit_code == 0, simulated.output
    picture = tmp_path / "replay.png"
    compared = ["--predicted", str(predicted), "--json", str(measured), "--picture", str(picture)]
    replayed = CliRunner().invoke(main, ["bench", "--url", served.url, *load, *compared])
    assert replayed.exit_code == 0, replayed.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    (guess,) = json.loads(predicted.read_text()).values()
    truth = json.loads(measured.read_text())[served.url]
    assert truth["requests"] == guess["requests"] > 150
    assert truth["failures"] == {}
    assert {name: route["requests"] for name, route in truth["routes"].items()} == {
        name: route["requests"] for name, route in guess["routes"].items()
    }
    assert truth["deadlines_met"] > 0.9
    assert truth["routes"]["bulk"]["variants"] == {"int8": truth["routes"]["bulk"]["requests"]}
    assert f"predicted by {policy}" in replayed.output and "deadlines met" in replayed.output


def test_a_model_that_the_server_has_not_is_named_before_anything_is_sent(served: Served) -> None:
    done = CliRunner().invoke(main, ["bench", "--url", served.url, "--mix", "digitz:50ms"])
    assert done.exit_code == 1 and "'digitz'" in done.output and "digits" in done.output
