"""A CSV file as it comes: no row is lost or shifted, and a broken one stands apart with its number."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizers.tensors import TensorSpec
from router.bulk.binding import has_header
from router.bulk.chunks import arrange
from router.bulk.csv_records import records
from router.bulk.errors import InputError
from router.bulk.source import open_source
from router.sdk.codec import ModelInfo

PIXELS = TensorSpec("image", "FP32", (-1, 1, 8, 8))
FOUR = TensorSpec("x", "FP32", (-1, 4))
TWO = TensorSpec("x", "FP32", (-1, 2))
ONE = TensorSpec("x", "FP32", (-1, 1))
TEXT = TensorSpec("text", "BYTES", (-1,))
FLAG = TensorSpec("flag", "BOOL", (-1, 2))
AGE = TensorSpec("age", "INT64", (-1,))


def model(*specs: TensorSpec) -> ModelInfo:
    return ModelInfo("m", ("a",), "", specs, ())


def rows(
    path: Path, content: bytes | str, *specs: TensorSpec, header: bool | None = None, size: int = 3
) -> tuple[dict[int, Any], dict[int, str]]:
    """The last input's values by row number, and the rows that cannot be run with their reasons.

    Checked on the way: reading that starts at any other row gives the same ones.
    """
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    values, failed = _from(path, 0, specs, header, size)
    for start in range(1, len(values) + len(failed) + 1):
        later = _from(path, start, specs, header, size)
        assert later == tuple({n: v for n, v in all_.items() if n >= start} for all_ in (values, failed))
    return values, failed


def _from(
    path: Path, start: int, specs: tuple[TensorSpec, ...], header: bool | None, size: int
) -> tuple[dict[int, Any], dict[int, str]]:
    info = model(*specs)
    values: dict[int, Any] = {}
    failed: dict[int, str] = {}
    for chunk in open_source(path, info, header).chunks(start, size):
        batches, failures = arrange(chunk, info)
        failed |= dict(failures)
        for batch in batches:
            values |= zip(batch.rows, batch.tensors[-1].array.tolist(), strict=True)
    return values, failed


def test_a_header_of_counted_columns_is_no_row(tmp_path: Path) -> None:
    body = "".join(",".join([str(n)] * 64) + "\n" for n in range(3))
    for first in (range(64), range(1, 65)):
        names = ",".join(map(str, first)) + "\n"
        values, failed = rows(tmp_path / "in.csv", names + body, PIXELS)
        assert (list(values), failed) == ([0, 1, 2], {})
        assert values[2] == np.full((1, 8, 8), 2.0).tolist()


def test_the_first_row_of_a_headless_file_is_a_row_although_a_cell_is_empty(tmp_path: Path) -> None:
    for gap in ("", " ", "NA", "null", "?"):
        values, failed = rows(tmp_path / "in.csv", f"5.1,{gap},1.4,0.2\n4.9,3.0,1.4,0.2\n", FOUR)
        assert list(values) == [1]
        assert list(failed) == [0]
        assert "'x'" in failed[0]


@pytest.mark.parametrize(
    ("first", "spec", "named"),
    [
        ("a,b,c,d", FOUR, True),
        (" X ", TensorSpec("x", "FP32", (-1, -1)), True),
        ("1.5,2,3,4", FOUR, False),
        ("nan,2,3,4", FOUR, False),
        ("1,-2,3e5,.4", FOUR, False),
        (",,,", FOUR, False),
        ("0.0,1.0,2.0,3.0", FOUR, False),
        ("0,1,2,3", FOUR, None),
        ("1,2,3,4", FOUR, None),
        ("5.1,abc,1.4,0.2", FOUR, None),
        ("2019,2020,2021,total", FOUR, None),
        ("NA,a,b,c", FOUR, None),
        (",a,b,c", FOUR, True),
        ("0", ONE, None),
        ("1", ONE, False),
        ("true,false", FLAG, False),
        ("0,1", FLAG, None),
        ("yes,no", FLAG, True),
        ("Text", TEXT, True),
        ("question", TEXT, None),
        ("my card was swallowed", TEXT, None),
        ("42", TEXT, False),
    ],
)
def test_names_are_told_from_rows_or_it_is_said_that_they_cannot_be(
    first: str, spec: TensorSpec, named: bool | None
) -> None:
    assert has_header(first.split(","), model(spec)) is named


def test_where_names_cannot_be_told_from_a_row_the_caller_is_asked_and_obeyed(tmp_path: Path) -> None:
    content, path = "my card was swallowed\nwhere is it\n", tmp_path / "in.csv"
    with pytest.raises(InputError, match=r"'my card was swallowed'\) may name the columns .*--header yes or"):
        rows(path, content, TEXT)
    assert rows(path, content, TEXT, header=False)[0] == {0: "my card was swallowed", 1: "where is it"}
    assert rows(path, content, TEXT, header=True)[0] == {0: "where is it"}
    assert rows(path, "1.5,2.5\n3,4\n", TWO, header=True) == ({0: [3, 4]}, {})
    with pytest.raises(InputError, match=r"--header is for \.csv"):
        open_source(tmp_path / "in.jsonl", model(TEXT), True)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("last", [True, False])
def test_marks_line_ends_and_blanks_make_no_difference(
    tmp_path: Path, mark: bytes, end: bytes, last: bool
) -> None:
    lines = [b"id, Age ,text", b"", b"a,1, x", b'"b","2","two ""words"""', b"", b"c, 3 ,\xc3\xbc"]
    content = mark + end.join(lines) + (end + end if last else b"")
    assert rows(tmp_path / "in.csv", content, AGE, TEXT) == ({0: " x", 1: 'two "words"', 2: "ü"}, {})


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b"6,\xff", "cell 2 is not UTF-8 text: b'\\xff'"),
        (b'6,"7', "a quote in it is not closed"),
        (b'"6,7', "a quote in it is not closed"),
        (b'6,"7"8', "not doubled"),
        (b"6", "the row has 1 cells, the first row has 2"),
        (b"6,7,8", "the row has 3 cells"),
        (b"6,", "a cell is empty"),
        (b"6,x", "'x' is not a number"),
        (b"6,1_000", "'1_000' is not a number"),
        ("6,\uff11".encode(), "is not a number"),
        (b"6,1e400", "'1e400' is not a number that FP32 holds"),
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_a_broken_row_stands_apart_and_the_rest_runs(
    tmp_path: Path, bad: bytes, says: str, again: bool
) -> None:
    good = [b"%d,%d" % (n, n + 1) for n in range(1, 12)]
    lines = [b"a,b", *good[:5], bad, *good[5:8], *([bad, bad] if again else []), *good[8:]]
    values, failed = rows(tmp_path / "in.csv", b"\n".join(lines) + b"\n", TWO)
    apart = [5, 9, 10] if again else [5]
    assert list(failed) == apart
    assert all(says in reason for reason in failed.values())
    assert [n for n in range(len(lines) - 1) if n not in apart] == sorted(values)
    assert [values[n] for n in sorted(values)] == [[n, n + 1] for n in range(1, 12)]


def test_a_quote_that_is_never_closed_takes_no_text_from_the_rows_after_it(tmp_path: Path) -> None:
    lines = ["age,text", "1,one", '2,"two', '3,"three"', "4,four", '5,"fi""ve', 'and more"', '6,"six']
    values, failed = rows(tmp_path / "in.csv", "\n".join(lines) + "\n", AGE, TEXT)
    assert values == {0: "one", 2: "three", 3: "four", 4: 'fi"ve\nand more'}
    assert list(failed) == [1, 5]


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    spec = TensorSpec("x", "FP32", (-1, -1))
    numbers = list(range(60_000))
    values, failed = rows(tmp_path / "in.csv", f'x\n"{numbers}"\n"[1]"\n', spec, size=1)
    assert (values[0], values[1], failed) == (numbers, [1], {})


@pytest.mark.parametrize("content", ["x,y,x\n1,2,3\n", " X,X ,y\n1,2,3\n"])
def test_two_columns_of_an_inputs_name_are_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(InputError, match=r"columns 1 and [23] are both named 'x'"):
        rows(tmp_path / "in.csv", content, ONE)


def test_a_name_as_it_is_wins_over_one_in_another_case(tmp_path: Path) -> None:
    assert rows(tmp_path / "in.csv", "X,x\n1,2\n", ONE) == ({0: [2]}, {})


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_file_in_another_encoding_is_refused_by_one_sentence(
    tmp_path: Path, name: str, encoding: str
) -> None:
    (tmp_path / name).write_bytes("text\nmore\n".encode(encoding))
    with pytest.raises(InputError, match=r"UTF-16 or UTF-32.*save it as UTF-8"):
        open_source(tmp_path / name, model(TEXT))


def test_a_first_line_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its first line tells the columns, and the line is not CSV"):
        rows(tmp_path / "in.csv", 'a,"b\n1,2\n', TWO)


def test_whatever_pythons_own_reader_takes_is_read_alike(tmp_path: Path) -> None:
    rng, path, tried = random.Random(7), tmp_path / "in.csv", 0
    while tried < 2_000:
        text = "".join(rng.choice('ab,"""\n ') for _ in range(rng.randrange(1, 24)))
        try:
            wanted = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
        except csv.Error:
            continue
        tried += 1
        path.write_text(text)
        assert list(records(path)) == wanted, text


def test_no_setting_of_pythons_reader_is_changed(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    assert rows(tmp_path / "in.csv", f'text\n"{"x" * 200_000}"\n', TEXT)[0][0] == "x" * 200_000
    assert csv.field_size_limit() == before
