"""Damage in files of rows: what is lost is an error, and nothing kills the process."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from carevl.data.reading import Source, SourceRow, read_source

ROWS = [
    {"image": f"{n}.png", "question": f"Which one, {n}?", "chosen": f"Yes {n}.", "rejected": f"No {n}."}
    for n in range(8)
]


def read(path: Path) -> list[SourceRow]:
    rows = list(read_source(Source("s", str(path))))
    assert [row.locator for row in rows] == [f"{path.name}#{n}" for n in range(len(rows))]
    return rows


def outcomes(path: Path) -> list[str]:
    return [row.error.kind if row.error else "good" for row in read(path)]


@pytest.fixture
def arrow(tmp_path: Path) -> Path:
    path = tmp_path / "data.arrow"
    table = pa.Table.from_pylist([row | {"tags": [{"name": "x"}, {"name": "y"}]} for row in ROWS])
    with pa.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table, max_chunksize=4)
    return path


def test_texts_that_lie_outside_of_an_arrow_file_cost_the_rows_that_need_them(arrow: Path) -> None:
    data = arrow.read_bytes()
    offsets = struct.pack("<5i", 0, 6, 12, 18, 24)  # of the column `chosen`, in both batches
    arrow.write_bytes(data.replace(offsets, struct.pack("<5i", 0, 6, 0x7FFF_0000, 18, 24), 1))
    rows = read(arrow)
    assert [row.error is None for row in rows] == [False] * 4 + [True] * 4
    assert rows[0].error is not None
    assert rows[0].error.message.startswith("the column `chosen` is damaged: ")


def test_damage_of_an_arrow_column_that_is_not_needed_costs_nothing(arrow: Path) -> None:
    data = arrow.read_bytes()
    offsets = struct.pack("<9i", *range(9))  # of the names among the tags
    assert data.count(offsets) == 2
    arrow.write_bytes(data.replace(offsets, struct.pack("<9i", 0, 0x7FFF_0000, *range(2, 9))))
    assert outcomes(arrow) == ["good"] * 8


def test_an_arrow_stream_that_ends_before_its_file_is_an_error(arrow: Path) -> None:
    data = bytearray(arrow.read_bytes())
    second = data.index(b"\xff\xff\xff\xff", data.index(b"No 3.")) + 4
    data[second : second + 4] = bytes(4)
    arrow.write_bytes(data)
    assert outcomes(arrow) == ["good"] * 4 + ["file"]


def test_arrow_files_with_a_footer_are_read_up_to_where_they_break_off(tmp_path: Path) -> None:
    path = tmp_path / "data.arrow"
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=4)
    assert outcomes(path) == ["good"] * 8
    data = bytearray(path.read_bytes())
    second = data.index(b"\xff\xff\xff\xff", data.index(b"No 3.")) + 4
    data[second : second + 4] = bytes(4)
    path.write_bytes(data)
    assert outcomes(path) == ["good"] * 4 + ["file"]
    path.write_bytes(data[: second + 100])
    assert outcomes(path) == ["good"] * 4 + ["file"]


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., Path]:
    def write(**options: object) -> Path:
        path = tmp_path / "data.parquet"
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=4, compression="none", **options)
        return path

    return write


def test_a_parquet_file_whose_counts_of_rows_differ_is_an_error(parquet: Callable[..., Path]) -> None:
    path = parquet()
    data = path.read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    total = bytes([0x16, 2 * len(ROWS)])  # the footer's third field, a compact integer
    assert data[start:].count(total) >= 1
    place = data.index(total, start)
    path.write_bytes(data[:place] + bytes([0x16, 2 * 60]) + data[place + 2 :])
    [row] = read(path)
    assert row.error is not None
    assert "it says that it has 60 rows, its row groups 8" in row.error.message


def test_rows_that_a_parquet_row_group_should_have_are_errors(parquet: Callable[..., Path]) -> None:
    path = parquet()
    data = path.read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer = data[start:].replace(bytes([0x16, 16]), bytes([0x16, 20]), 1)  # rows in all
    groups = footer.rpartition(bytes([0x16, 8]))
    path.write_bytes(data[:start] + groups[0] + bytes([0x16, 12]) + groups[2])
    assert pq.ParquetFile(path).metadata.row_group(1).num_rows == 6
    assert outcomes(path) == ["good"] * 8 + ["row"] * 2


def test_a_parquet_page_that_does_not_have_its_checksum_costs_its_rows(parquet: Callable[..., Path]) -> None:
    path = parquet(write_page_checksum=True)
    path.write_bytes(path.read_bytes().replace(b"Yes 1.", b"Yes 9."))
    assert outcomes(path) == ["row"] * 4 + ["good"] * 4


def write_tar(*names: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in names:
            data = b'{"image": "a.png", "question": "Which one?", "chosen": "a", "rejected": "b"}'
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (write_tar("0.json", "1.json"), ["good", "good"]),
        (write_tar("0.json") + write_tar("1.json"), ["good", "good"]),
        (write_tar("0.json") + b"x" * 512, ["good", "file"]),
        (write_tar("0.json") + write_tar("1.json")[:300], ["good", "file"]),
        (write_tar("0.json") + bytes(512) + write_tar("1.json"), ["good", "file", "good"]),
        (write_tar("0.json", "1.json")[:1024] + bytes(512) + write_tar("0.json", "1.json")[1536:], ["good", "file"]),
    ],
)
def test_what_follows_zeros_in_a_tar_file_is_read_or_an_error(data: bytes, expected: list[str], tmp_path: Path) -> None:
    path = tmp_path / "data.tar"
    path.write_bytes(data)
    assert outcomes(path) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"image,question,chosen,rejected\na.png,Q?,a,b\nb.png,Q?,\0\0,b\nc.png,Q?,a,b\n", ["good", "row", "good"]),
        (b"image,quest\xefon,chosen,rejected\na.png,Q?,a,b\nb.png,Q?,a,b\n", ["file", "file"]),
        (b"image,quest" + bytes(70), ["file"]),
    ],
)
def test_lost_blocks_of_csv_are_errors_of_all_their_rows(data: bytes, expected: list[str], tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(data)
    assert outcomes(path) == expected
