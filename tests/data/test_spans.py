"""A file that is divided has the rows of the file, whatever the size of its pieces, and whatever is in it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from carevl.data.containers import Record, read_records
from carevl.data.spans import divide

LOCAL = pafs.LocalFileSystem()
LINES = [
    *(json.dumps({"question": f"Which, {n}?", "text": "x" * (n * 37 % 300)}).encode() for n in range(60)),
    b"",
    b"  \t ",
    b"\r",
    b"{broken",
    b'{"question": "\xff"}',
    b"7",
    json.dumps({"question": "Ümlaut ≠ ascii"}).encode(),
]


def facts_of(records: list[Record]) -> list[tuple[object, ...]]:
    return [
        (record.number, record.row, record.error and (record.error.kind, record.error.message)) for record in records
    ]


def pieces(file: Path, most_bytes: int) -> list[list[Record]]:
    return [list(read_records(LOCAL, str(file), span)) for span in divide(LOCAL, str(file), most_bytes)]


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n \n"])
@pytest.mark.parametrize("most_bytes", [1, 50, 333, 4096, 1 << 30])
def test_pieces_of_lines_are_the_rows_of_the_file(tmp_path: Path, most_bytes: int, end: bytes) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([*LINES, *LINES[::-1]]) + end)
    whole = list(read_records(LOCAL, str(file)))
    divided = pieces(file, most_bytes)
    assert facts_of([record for piece in divided for record in piece]) == facts_of(whole)
    assert len(divided) > 1 or most_bytes == 1 << 30
    if most_bytes == 1:
        assert max(map(len, divided)) == 1


@pytest.mark.parametrize("most_bytes", [1, 3000, 1 << 30])
def test_pieces_of_parquet_are_whole_row_groups(tmp_path: Path, most_bytes: int) -> None:
    file = tmp_path / "rows.parquet"
    rows = [{"question": f"Which, {n}?", "chosen": "x" * (n % 50), "n": n} for n in range(700)]
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=64)
    whole = list(read_records(LOCAL, str(file)))
    divided = pieces(file, most_bytes)
    assert facts_of([record for piece in divided for record in piece]) == facts_of(whole)
    assert len(divided) == {1: 11, 1 << 30: 1}.get(most_bytes, len(divided))
    assert all(len(piece) % 64 == 0 for piece in divided[:-1])


def test_other_files_are_not_divided(tmp_path: Path) -> None:
    for name, data in {"a.json": b"[1]", "a.jsonl.gz": b"", "a.csv": b"a\n1\n", "a.parquet": b"PAR1"}.items():
        (tmp_path / name).write_bytes(data)
        assert divide(LOCAL, str(tmp_path / name), 1) == []
    (tmp_path / "empty.jsonl").touch()
    assert divide(LOCAL, str(tmp_path / "empty.jsonl"), 1) == []
