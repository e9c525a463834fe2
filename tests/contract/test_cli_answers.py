"""What the client's commands read and print: values from anywhere, one JSON schema, colours, no key."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from optimizers.tensors import TensorSpec
from router.ingress.codec import protocol
from tests.contract.cli_harness import Cli, Server, against
from tests.unit.sdk.harness import FakeServer, pending, problem

IMAGE = "[[3, 3], [3, 3]]"
ANSWER = {
    "outputs", "route", "path", "variant", "latency_ms", "predicted_ms", "queued_ms", "deadline_met", "id",
}  # fmt: skip


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Callable[[Server], Cli]:
    return lambda server: against(monkeypatch, server)


def npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("stdin", [IMAGE, IMAGE.encode(), npy(np.full((2, 2), 3.0))])
def test_standard_input_may_be_json_or_an_array(cli: Callable[[Server], Cli], stdin: str | bytes) -> None:
    done = cli(FakeServer())("infer", "digits", "--json", stdin=stdin)
    assert done.exit_code == 0, done.output
    assert orjson.loads(done.stdout)["outputs"]["scores"][0][3] == 1


def test_a_file_of_rows_is_one_request(cli: Callable[[Server], Cli], tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("1,1,1,1\n7,7,7,7\n")
    (tmp_path / "in.jsonl").write_text("[[1,1],[1,1]]\n[[7,7],[7,7]]\n")
    for name in ("in.csv", "in.jsonl"):
        server = FakeServer()
        done = cli(server)("infer", "digits", f"@{tmp_path / name}", "--json")
        assert np.argmax(orjson.loads(done.stdout)["outputs"]["scores"], axis=1).tolist() == [1, 7]
        assert len(server.posts) == 1


def test_a_first_line_that_may_be_names_is_asked_about_and_header_says_what_it_is(
    cli: Callable[[Server], Cli], tmp_path: Path
) -> None:
    (tmp_path / "in.csv").write_text("0,1,2,3\n7,7,7,7\n")
    invoke, given = cli(FakeServer()), ("infer", "digits", f"@{tmp_path / 'in.csv'}", "--json")
    done = invoke(*given)
    assert (done.exit_code, "say which with --header yes or --header no" in done.stderr) == (2, True)
    for header, rows in (("yes", 1), ("no", 2)):
        said = invoke(*given, "--header", header)
        assert len(orjson.loads(said.stdout)["outputs"]["scores"]) == rows
    assert "--header is for @FILE.csv" in invoke("infer", "digits", IMAGE, "--header", "no").stderr


def test_a_number_is_exact_or_refused_with_its_place(cli: Callable[[Server], Cli], tmp_path: Path) -> None:
    scores = {"name": "scores", "datatype": "FP32", "shape": [1], "data": [0.5]}
    answer = httpx.Response(200, json={"outputs": [scores]})
    server = FakeServer(answer, inputs=(TensorSpec("image", "UINT64", (-1, 2, 2)),))
    big = 2**64 - 1
    done = cli(server)("infer", "digits", f"[[{big}, 1], [{big}, 1]]", "--json")
    assert done.exit_code == 0, done.output
    length = int(server.posts[0].headers[protocol.HEADER_LENGTH])
    assert protocol.decode(server.posts[0].content, length).inputs["image"].tolist() == [[[big, 1]] * 2]
    (tmp_path / "in.csv").write_text(f"a,b,c,d\n1,2,3,4\n1,2,{big + 1},4\n")
    for given in (f"[[1, 2], [{big + 1}, 4]]", f"@{tmp_path / 'in.csv'}"):
        done = cli(server)("infer", "digits", given)
        assert done.exit_code == 2
        assert f"input 'image': {big + 1} cannot be kept in the model's UINT64 (0 to {big})" in done.stderr
    assert "row 1 (of 0 to 1)" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("in.csv", b"1,1,1,1\n7,7,x,7\n", "row 1 (of 0 to 1)"),
        ("in.csv", b"1,1,1\n", "the file has 3 columns"),
        ("in.csv", b"", "is empty"),
        ("in.jsonl", b"\n", "has no rows"),
        ("in.jsonl", b"[[1,1],[1,1]]\n" * 10_001, "more than 10,000 rows: hybrid-router submit"),
        ("in.json", b"\xff\xfe", "neither text in UTF-8 nor a .npy array"),
        ("in.npy", b"\x93NUMPY\x01", "cannot be read"),
    ],
)
def test_a_file_that_is_no_value_ends_with_2_and_says_why(
    cli: Callable[[Server], Cli], tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    done = cli(FakeServer())("infer", "digits", f"@{tmp_path / name}")
    assert (done.exit_code, says in done.stderr, done.stdout) == (2, True, ""), done.stderr


def test_a_files_name_without_its_at_sign_is_guessed(cli: Callable[[Server], Cli], tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(IMAGE)
    done = cli(FakeServer())("infer", "digits", tmp_path / "in.json")
    assert done.exit_code == 2
    assert f"the file of that name is @{tmp_path / 'in.json'}" in done.stderr


def test_only_the_chosen_outputs_are_asked_for(cli: Callable[[Server], Cli]) -> None:
    server = FakeServer(queue=True)
    invoke = cli(server)
    assert invoke("infer", "digits", IMAGE, "--output", "scores", "--budget", "10min").exit_code == 0
    (post,) = server.posts
    length = int(post.headers[protocol.HEADER_LENGTH])
    assert protocol.decode(post.content, length).outputs == {"scores": True}
    assert invoke("result", "r0", "--output", "scores").exit_code == 0
    assert {r.url.params.get("output") for r in server.polls} == {"scores"}


@pytest.mark.parametrize(
    ("reply", "code", "state"),
    [
        (None, 0, "done"),
        (pending("r0", "leased"), 7, "leased"),
        (problem(504, "expired", state="expired"), 5, "expired"),
        (problem(422, "the rows are bad", state="failed"), 1, "failed"),
        (problem(500, "given up on", state="dead"), 1, "dead"),
        (problem(410, "cancelled"), 1, "cancelled"),
    ],
)
def test_result_as_json_has_the_same_members_in_every_state(
    cli: Callable[[Server], Cli], reply: httpx.Response | None, code: int, state: str
) -> None:
    server = FakeServer(queue=True)
    invoke = cli(server)
    infer = invoke("infer", "digits", IMAGE, "--budget", "10min", "--json")
    assert set(orjson.loads(infer.stdout)) == ANSWER
    server.script.extend([reply] * 3 if reply else [])
    done = invoke("result", "r0", "--json")
    told = orjson.loads(done.stdout)
    assert done.exit_code == code, done.output
    assert set(told) == ANSWER | {"state", "error"}
    assert (told["id"], told["state"]) == ("r0", state)
    assert (told["error"] is None, told["outputs"] is None) == (code == 0, code != 0)


@pytest.mark.parametrize(
    ("env", "color", "coloured"),
    [({}, True, True), ({}, False, False), ({"NO_COLOR": "1"}, True, False), ({"TERM": "dumb"}, True, False)],
)
def test_colours_only_on_a_terminal_that_wants_them(
    cli: Callable[[Server], Cli], env: dict[str, str], color: bool, coloured: bool
) -> None:
    invoke = cli(FakeServer())
    said = invoke("infer", "digits", IMAGE, env=env, color=color)
    wrong = invoke("infer", "digits", "[1]", env=env, color=color)
    assert ["\x1b[" in said.stdout, "\x1b[" in wrong.stderr] == [coloured, coloured]


def test_the_key_goes_to_the_server_and_nowhere_else(cli: Callable[[Server], Cli]) -> None:
    for arguments, env in ((("--key", "s3cret"), {}), ((), {"HYBRID_ROUTER_KEY": "s3cret"})):
        server = FakeServer(problem(401, "this API key is not known here"))
        invoke = cli(server)
        done = invoke("infer", "digits", IMAGE, *arguments, env=env)
        assert done.exit_code == 8
        assert server.requests[0].headers["authorization"] == "Bearer s3cret"
        wrong = invoke("infer", "digits", IMAGE, "--key", "s3cret\n", env=env)
        shown = [done, wrong, invoke("infer", "--help", env=env), invoke("infer", *arguments, env=env)]
        assert "s3cret" not in "".join(run.output for run in shown)


def test_an_interrupt_ends_with_130_and_no_trace(cli: Callable[[Server], Cli]) -> None:
    def interrupted(request: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    done = cli(interrupted)("infer", "digits", IMAGE)
    assert (done.exit_code, done.stderr) == (130, "hybrid-router: interrupted\n")


def test_text_from_a_file_may_begin_with_a_mark(cli: Callable[[Server], Cli], tmp_path: Path) -> None:
    seen: list[bytes] = []

    def scripted(request: httpx.Request) -> httpx.Response:
        length = int(request.headers[protocol.HEADER_LENGTH])
        seen.extend(protocol.decode(request.content, length).inputs["text"].ravel())
        out = {"name": "intent", "datatype": "BYTES", "shape": [1], "data": ["lost_card"]}
        return httpx.Response(200, json={"outputs": [out]})

    (tmp_path / "q.txt").write_bytes(b"\xef\xbb\xbfwhere is my card?\n")
    server = FakeServer(scripted, inputs=(TensorSpec("text", "BYTES", (-1,)),))
    done = cli(server)("infer", "digits", f"@{tmp_path / 'q.txt'}")
    assert (done.exit_code, seen) == (0, [b"where is my card?"])
