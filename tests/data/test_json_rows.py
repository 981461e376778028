"""JSON: bytes that are not UTF-8, names that stand twice, and arrays that break off."""

from __future__ import annotations

import io
import itertools
import json

import pytest

from carevl.data import json_rows
from carevl.data.json_rows import LostRowsError, json_values, line_values
from carevl.data.rows import RowError

ROWS = [{"n": n, "text": f"row {n:05}"} for n in range(20_000)]


def test_latin_1_costs_its_rows_and_says_so() -> None:
    good, bad = b'{"a": "\xc3\xa9 \xef\xbf\xbd \\udce9"}', b'{"a": "\xe9"}'
    lines = list(line_values(io.BytesIO(good + b"\n" + bad)))
    array = list(json_values(io.BytesIO(b"[" + good + b", " + bad + b"]")))
    for first, second in (lines, array):
        assert first == {"a": "é \ufffd \udce9"}
        assert isinstance(second, RowError)
        assert "is not UTF-8: byte 0xe9 at 7; write the file anew as UTF-8" in second.message


def test_a_name_that_stands_twice_is_believed_neither_time() -> None:
    [row] = line_values(io.BytesIO(b'{"chosen": "a", "chosen": "b", "other": {"x": 1, "x": 2}}'))
    assert isinstance(row["chosen"], RowError)
    assert row["chosen"].message == "`chosen` stands 2 times in one object"
    assert isinstance(row["other"]["x"], RowError)


@pytest.mark.parametrize("indent", [None, 2])
def test_what_is_lost_behind_a_break_is_counted(indent: int | None) -> None:
    text = json.dumps(ROWS, indent=indent)
    place = text.index("row 05000") - 1
    values = json_values(io.BytesIO((text[:place] + "NOPE" + text[place:]).encode()))
    assert list(itertools.islice(values, 5000)) == ROWS[:5000]
    with pytest.raises(
        LostRowsError, match=r"Expecting value, in the value at character \d+; 15\d\d\d rows"
    ) as failure:
        next(values)
    assert abs(failure.value.rows - 15_000) < 500


@pytest.mark.parametrize(
    ("text", "rows", "message"),
    [
        ('[{"a": 1}, {"a"', 1, "Expecting"),
        ('[{"a": 1},', 1, "the file ends inside its array"),
        ('[{"a": 1} {"a": 2}]', 1, "expected `,` or `]` after an element"),
        ('[{"a": 1}][{"a": 2}]', 1, "expected nothing after the end of the array, found '['"),
        ("x", 0, "Expecting value"),
    ],
)
def test_an_array_that_breaks_off_says_where(text: str, rows: int, message: str) -> None:
    values = json_values(io.BytesIO(text.encode()))
    assert [next(values) for _ in range(rows)] == [{"a": 1}] * rows
    with pytest.raises(LostRowsError) as failure:
        next(values)
    assert message in str(failure.value)
    assert failure.value.rows == 1


@pytest.mark.parametrize("number", ["123", "1.5", "12e+30", "-1.5E-7"])
def test_a_number_across_the_edge_of_what_is_read_is_one(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in range(1, 9):
        monkeypatch.setattr(json_rows, "_CHUNK_BYTES", size)
        assert list(json_values(io.BytesIO(f"[{number}, {number}]".encode()))) == [float(number)] * 2
