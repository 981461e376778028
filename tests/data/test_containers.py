"""Every container gives the same rows, in little memory, and says where it broke off."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from carevl.data import json_rows
from carevl.data.containers import list_files, read_records
from carevl.data.files import SourceError, locate
from carevl.data.intake import Intake
from carevl.data.reading import Source, SourceRow, mix, read_source

IMAGE = {"bytes": b"picture", "path": "a.png"}
ROWS = [
    {"image": f"{n}.png", "question": f"Which one, {n}?", "chosen": f"Yes {n}.", "rejected": f"No {n}."}
    for n in range(40)
]


def parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(str(path), mode) as archive:  # type: ignore[call-overload]  # any mode
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def read(path: Path | str, **options: Any) -> list[SourceRow]:
    return list(read_source(Source("s", str(path), **options)))


def questions(rows: list[SourceRow]) -> list[str | None]:
    return [row.preference.question if row.preference else None for row in rows]


def write_as(kind: str, folder: Path) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    path = folder / f"data.{kind}"
    if kind == "parquet":
        return parquet(path, ROWS, row_group_size=7)
    if kind == "json":
        path.write_text("\ufeff" + json.dumps(ROWS, indent=1))
    elif kind == "jsonl":
        path.write_text(lines.replace("\n", "\r\n\n"))
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == "arrow":
        from datasets import Dataset

        Dataset.from_list(ROWS).save_to_disk(folder / "saved", num_shards=2)
        return folder / "saved"
    else:
        members = {f"{n:04}.json": json.dumps(row).encode() for n, row in enumerate(ROWS)}
        return tar(path, members, "w:gz" if kind.endswith("gz") else "w")
    return path


@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl", "jsonl.gz", "arrow", "tar", "tar.gz"])
def test_every_container_gives_the_same_rows_with_locators(kind: str, tmp_path: Path) -> None:
    rows = read(write_as(kind, tmp_path))
    assert questions(rows) == [row["question"] for row in ROWS]
    assert len({row.locator for row in rows}) == len(ROWS)
    if kind != "arrow":
        assert rows[3].locator == f"data.{kind}#3"


def test_json_objects_one_after_another_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text("\n".join(json.dumps(row, indent=2) for row in ROWS))
    assert questions(read(path)) == [row["question"] for row in ROWS]


@pytest.mark.parametrize("scheme", ["path", "uri", "subtree"])
def test_any_pyarrow_filesystem(scheme: str, tmp_path: Path) -> None:
    path = write_as("parquet", tmp_path)
    if scheme == "subtree":
        filesystem = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
        rows = list(read_source(Source("s", path.name), filesystem))
    else:
        rows = read(path.as_uri() if scheme == "uri" else path)
    assert questions(rows) == [row["question"] for row in ROWS]


def test_fsspec_filesystem_holds_data_and_images(draw: Callable[..., bytes]) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/set/data.jsonl", json.dumps(ROWS[0] | {"image": "img/0.png"}).encode())
    memory.pipe("/bucket/set/img/0.png", draw())
    memory.pipe("/bucket/secret.png", draw())
    source, filesystem = Source("s", "/bucket/set"), pafs.PyFileSystem(pafs.FSSpecHandler(memory))
    [row] = read_source(source, filesystem)
    [image], item = Intake(source, filesystem)(row)
    assert item["error"] is None
    assert image["bytes"] == draw()
    memory.pipe("/bucket/set/data.jsonl", json.dumps(ROWS[0] | {"image": "../secret.png"}).encode())
    [row] = read_source(source, filesystem)
    assert Intake(source, filesystem)(row)[1]["error"]["kind"] == "image_refused"
    memory.rm("/bucket", recursive=True)


def test_datasets_images_and_splits(tmp_path: Path, draw: Callable[..., bytes]) -> None:
    from datasets import Dataset, DatasetDict, Features, Image, Value

    features = Features({"image": Image()} | dict.fromkeys(("question", "chosen", "rejected"), Value("string")))
    rows = [row | {"image": {"bytes": draw(seed=n), "path": None}} for n, row in enumerate(ROWS)]
    saved = DatasetDict({name: Dataset.from_list(rows, features=features) for name in ("train", "test")})
    saved.save_to_disk(tmp_path / "saved")
    found = read(tmp_path / "saved" / "train")
    assert questions(found) == [row["question"] for row in ROWS]
    assert [row.preference.images["bytes"] for row in found if row.preference] == [draw(seed=n) for n in range(40)]
    assert len(read(tmp_path / "saved")) == 80


def test_tar_members_are_the_images_of_their_sample(tmp_path: Path) -> None:
    columns = {key: value for key, value in ROWS[0].items() if key != "image"}
    members = {
        "d/0.json": json.dumps(columns).encode(),
        "d/0.png": b"zero",
        "d/1.jpg": b"one",
        "d/1.json": json.dumps(columns | {"image": "1.jpg"}).encode(),
        "d/2.question.txt": b"Q?",
        "d/2.chosen.txt": b"Yes.",
        "d/2.rejected.txt": b"No.",
        "d/2.webp": b"two",
        "d/3.a.png": b"three",
        "d/3.b.png": b"four",
        "d/3.json": json.dumps(columns).encode(),
    }
    rows = read(tar(tmp_path / "data.tar", members), format="spa-vl")
    images = [row.preference.images for row in rows if row.preference]
    assert images[:3] == [
        {"bytes": b"zero", "path": "d/0.png"},
        {"bytes": b"one", "path": "d/1.jpg"},
        {"bytes": b"two", "path": "d/2.webp"},
    ]
    assert questions(rows)[2] == "Q?"


@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl", "arrow", "tar", "jsonl.gz"])
@pytest.mark.parametrize("keep", [0.0, 0.4, 0.9])
def test_a_cut_file_gives_its_whole_rows_and_an_error(kind: str, keep: float, tmp_path: Path) -> None:
    path = write_as(kind, tmp_path)
    file = sorted(path.glob("*.arrow"))[0] if kind == "arrow" else path
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    rows = read(file)
    good = [question for question in questions(rows) if question]
    assert good == [row["question"] for row in ROWS[: len(good)]]
    errors = [row.error.kind for row in rows if row.error]
    if keep == 0.0 and kind.startswith("json"):
        assert rows == []
    elif kind == "tar" and keep == 0.9:
        assert len(rows) == len(ROWS)  # only the padding at the end is gone
    else:
        assert errors in (["file"], ["row"])


def test_a_damaged_tar_header_is_an_error(tmp_path: Path) -> None:
    path = write_as("tar", tmp_path)
    data = bytearray(path.read_bytes())
    data[10 * 1024 : 10 * 1024 + 200] = b"x" * 200
    path.write_bytes(data)
    rows = read(path)
    assert [row.error.kind for row in rows if row.error] == ["file"]
    assert len(rows) == 11


def test_damage_in_a_row_group_costs_its_rows_only(tmp_path: Path) -> None:
    path = parquet(tmp_path / "data.parquet", ROWS, row_group_size=10, compression="gzip")
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    rows = read(path)
    assert [row.locator.rpartition("#")[2] for row in rows] == [str(n) for n in range(40)]
    assert [row.error is not None for row in rows] == [False] * 10 + [True] * 10 + [False] * 20


def test_text_that_is_not_utf8_costs_its_row_only(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    bad = pa.array([b"\xff\xfe" if n == 5 else row["chosen"].encode() for n, row in enumerate(ROWS)], pa.binary())
    table = table.set_column(2, "chosen", bad.view(pa.string()))
    pq.write_table(table, tmp_path / "data.parquet")
    rows = read(tmp_path / "data.parquet")
    assert [n for n, row in enumerate(rows) if row.error] == [5]


@pytest.mark.parametrize(
    "line", ["{", "[1, 2]", "null", '"text"', "[" * 200_000, '{"a": ' + "9" * 5000 + "}", "\ud800"]
)
def test_a_bad_line_costs_its_row_only(line: str, tmp_path: Path) -> None:
    good = [json.dumps(row) for row in ROWS[:2]]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([good[0], line, good[1]]), errors="surrogatepass")
    rows = read(path)
    assert [row.error.kind if row.error else None for row in rows] == [None, "row", None]


def test_an_over_long_line_is_skipped_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    with path.open("w") as lines:
        lines.write(json.dumps(ROWS[0]) + "\n")
        for _ in range(80):
            lines.write("x" * (1 << 20))
        lines.write("\n" + json.dumps(ROWS[1]) + "\n")
    assert json_rows.MAX_ROW_BYTES < 80 << 20
    rows = read(path)
    assert [row.error.message[:8] if row.error else None for row in rows] == [None, "the line", None]


def test_an_array_that_breaks_off_keeps_the_rows_before(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    for text in (
        json.dumps(ROWS[:2])[:-1] + ', {"image"',
        json.dumps(ROWS[:2])[:-1],
        json.dumps(ROWS[:2])[:-1] + " 5]",
    ):
        path.write_text(text)
        rows = read(path)
        assert questions(rows)[:2] == [row["question"] for row in ROWS[:2]]
        assert [row.error.kind for row in rows if row.error] == ["file"]
        assert rows[2].locator == "data.json#2"


def test_shards_with_other_columns_are_read_by_their_own_format(tmp_path: Path) -> None:
    parquet(tmp_path / "0.parquet", ROWS[:3])
    items = [{"image": "i", "question": "Q?", "responses": ["a", "b"], "source_preference": None}]
    parquet(tmp_path / "1.parquet", items)
    parquet(tmp_path / "2.parquet", [{"caption": "x"}, {"caption": "y"}])
    parquet(tmp_path / "3.parquet", [dict.fromkeys(ROWS[0], 4)])
    (tmp_path / "4.parquet").write_bytes(b"")
    parquet(tmp_path / "5.parquet", ROWS[:0])
    parquet(tmp_path / "6.parquet", ROWS[:1])
    told: list[str] = []
    rows = list(read_source(Source("s", str(tmp_path)), log=told.append))
    kinds = [(Path(row.locator).name, row.format, row.error.kind if row.error else None) for row in rows]
    assert kinds == [
        *((f"0.parquet#{n}", "spa-vl", None) for n in range(3)),
        ("1.parquet#0", "items", None),
        ("2.parquet#0", None, "format"),
        ("2.parquet#1", None, "format"),
        ("3.parquet#0", None, "format"),
        ("4.parquet#0", None, "file"),
        ("6.parquet#0", "spa-vl", None),
    ]
    first = {"spa-vl": "0", "items": "1", "no known format": "2"}
    assert told == [f"s: {name} in {tmp_path}/{file}.parquet" for name, file in first.items()]


def test_a_path_without_data_is_said(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for path, message in (
        (tmp_path / "absent", "no such file"),
        (tmp_path / "notes.txt", "not a known kind of file; known: .parquet"),
        (tmp_path, "1 files, none of a known kind"),
    ):
        with pytest.raises(SourceError, match=message):
            read(path)


def test_hidden_files_and_metadata_are_left_out(tmp_path: Path) -> None:
    for name in ("_temporary/0.parquet", ".cache/0.parquet", "dataset_info.json", "b.parquet", "a/c.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    files = list_files(*locate(str(tmp_path)))
    assert [os.path.relpath(file, tmp_path) for file in files] == ["a/c.parquet", "b.parquet"]


def _write_big(path: Path, kind: str, rows: int) -> None:
    one = {"image": {"bytes": os.urandom(50_000), "path": "a"}, "question": "Q?", "chosen": "A", "rejected": "B"}
    if kind == "parquet":
        images = ({"bytes": os.urandom(50_000), "path": "a"} for _ in range(rows))
        parquet(path, [one | {"image": image} for image in images], row_group_size=50)
    elif kind == "tar":
        text = json.dumps({"question": "Q?", "chosen": "A", "rejected": "B"}).encode()
        tar(
            path,
            {
                f"{n}.{end}": text if end == "json" else os.urandom(50_000)
                for n in range(rows)
                for end in ("json", "png")
            },
        )
    else:
        row = json.dumps(one | {"image": "x" * 50_000})
        path.write_text(f"[{', '.join([row] * rows)}]" if kind == "json" else f"{row}\n" * rows)


@pytest.mark.parametrize("kind", ["parquet", "tar", "json", "jsonl"])
def test_memory_does_not_grow_with_the_file(kind: str, tmp_path: Path) -> None:
    peaks = []
    for rows in (100, 600):
        path = tmp_path / f"{rows}.{kind}"
        _write_big(path, kind, rows)
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        arrow = seen = 0
        for record in read_records(*locate(str(path))):
            seen += record.error is None
            arrow = max(arrow, pa.total_allocated_bytes() - before)
        peaks.append(tracemalloc.get_traced_memory()[1] + arrow)
        tracemalloc.stop()
        assert seen == rows
    assert peaks[1] < 1.5 * peaks[0]
    assert peaks[1] < 600 * 50_000 / 3


def test_a_tar_of_many_members_is_not_remembered(tmp_path: Path) -> None:
    peaks = []
    for rows in (300, 3000):
        path = tar(tmp_path / f"{rows}.tar", {f"{n}.question.txt": b"Q?" for n in range(rows)})
        tracemalloc.start()
        assert sum(1 for _ in read_records(*locate(str(path)))) == rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_mixing_keeps_every_row_and_the_asked_proportions() -> None:
    def count(name: str, rows: int) -> Iterator[tuple[str, int]]:
        return ((name, n) for n in range(rows))

    drawn = list(mix([count("a", 4000), count("b", 4000)], [3.0, 1.0], seed=5))
    assert sorted(drawn) == [*count("a", 4000), *count("b", 4000)]
    assert 0.70 < sum(name == "a" for name, _ in drawn[:2000]) / 2000 < 0.80
    assert drawn == list(mix([count("a", 4000), count("b", 4000)], [3.0, 1.0], seed=5))
    with pytest.raises(ValueError, match="positive weights"):
        list(mix([count("a", 1)], [0.0]))


@pytest.mark.parametrize(("most", "places"), [(None, 5), (1, 1), (3, 3), (4, 4), (9, 5)])
def test_no_more_rows_are_read_than_a_source_may_have(tmp_path, most, places):
    row = {"image": "a.png", "question": "q", "chosen": "x", "rejected": "y"}
    for name, n in (("a.jsonl", 3), ("b.jsonl", 2)):
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for _ in range(n)))
    lines = []
    rows = list(read_source(Source("s", str(tmp_path), rows=most), log=lines.append))
    in_order = [f"{name}#{row}" for name, n in (("a.jsonl", 3), ("b.jsonl", 2)) for row in range(n)]
    assert [each.locator for each in rows] == in_order[:places]
