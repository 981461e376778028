"""CSV and TSV: rows of text, and lines that are none."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from carevl.data.csv_rows import csv_rows
from carevl.data.reading import Source, read_source
from carevl.data.rows import RowError


def rows(text: str | bytes, delimiter: str = ",") -> list[object]:
    data = text.encode() if isinstance(text, str) else text
    return [value.message if isinstance(value, RowError) else value for value in csv_rows(io.BytesIO(data), delimiter)]


def test_cells_are_text_and_empty_ones_are_null() -> None:
    quoted = '\ufeffimage,question,chosen\r\na.png,"one, ""two""\nthree",5\r\n\r\nb.png,,x\r\n'
    assert rows(quoted) == [
        {"image": "a.png", "question": 'one, "two"\nthree', "chosen": "5"},
        {"image": "b.png", "question": None, "chosen": "x"},
    ]
    assert rows("a\tb\n1,2\t3", "\t") == [{"a": "1,2", "b": "3"}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"1", "line 3 has 1 cells, the first line names 2 columns"),
        (b"1,2,3", "line 3 has 3 cells"),
        (b'"1"2,3', "line 3 is not CSV"),
        (b"\xe9,2", "line 3: the row is not UTF-8: byte 0xe9 at 0"),
    ],
)
def test_a_bad_line_costs_its_row_only(line: bytes, message: str) -> None:
    first, bad, last = rows(b"a,b\n1,2\n" + line + b"\n3,4\n")
    assert (first, last) == ({"a": "1", "b": "2"}, {"a": "3", "b": "4"})
    assert isinstance(bad, str)
    assert bad.startswith(message)


def test_a_quote_that_does_not_close_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        'image,question,chosen,rejected\na.png,What?,Yes.,No.\nb.png,"What?,Yes.,No.\nc.png,What?,Yes.,No.\n'
    )
    good, lost = read_source(Source("s", str(path)))
    assert good.preference is not None
    assert lost.error is not None
    assert lost.error.kind == "file"
    assert "a quote in line 3 does not close" in lost.error.message


def test_a_column_that_stands_twice_costs_only_who_reads_it() -> None:
    [row] = csv_rows(io.BytesIO(b"a,b,a\n1,2,3\n"))
    assert isinstance(row, dict)
    assert row["b"] == "2"
    assert isinstance(row["a"], RowError)
    assert row["a"].message == "the column `a` stands 2 times"


def test_a_folder_of_images_with_its_metadata_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,question,chosen,rejected\na.png,What?,Yes.,No.\n")
    [row] = read_source(Source("s", str(tmp_path)))
    assert row.preference is not None
    assert (row.format, row.preference.references) == ("spa-vl", ("a.png",))
