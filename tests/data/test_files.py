"""Files below a directory: whatever their names are, each once, and none passed by without a word."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from carevl.data.containers import list_and_pass_over, list_files
from carevl.data.files import SourceError, files_below, locate, stamp
from carevl.data.formats import FORMATS
from carevl.data.reading import Source, read_source

ROW = FORMATS["spa-vl"].example
LINE = json.dumps(ROW).encode()


def test_a_name_that_is_not_utf8_costs_nothing_but_itself(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(LINE)
    (tmp_path / os.fsdecode(b"bild_\xe9.png")).write_bytes(b"x")
    (tmp_path / os.fsdecode(b"odd_\xe9.jsonl")).write_bytes(LINE)
    odd, good = read_source(Source("s", str(tmp_path)))
    assert good.preference is not None
    assert odd.error is not None
    assert (odd.error.kind, odd.locator) == ("file", "odd_\ufffd.jsonl#0")
    assert "its name is not UTF-8; rename it" in odd.error.message
    assert stamp(*locate(str(tmp_path)))[:2] == [3, 1 + 2 * len(LINE)]


def test_links_are_followed_and_circles_are_entered_once(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far/rows.jsonl").write_bytes(LINE)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/linked").symlink_to("../far")
    (tmp_path / "data/circle").symlink_to(".")
    (tmp_path / "data/nowhere.jsonl").symlink_to("absent")
    assert list_files(*locate(str(tmp_path / "data"))) == [f"{tmp_path}/data/linked/rows.jsonl"]


def test_a_directory_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"absent: the directory cannot be listed: No such file"):
        files_below(locate("/")[0], str(tmp_path / "absent"))


@pytest.mark.parametrize("ending", ["json", "jsonl", "ndjson"])
@pytest.mark.parametrize("packed", ["", ".gz", ".bz2", ".zst"])
def test_texts_are_read_however_they_are_packed(ending: str, packed: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{ending}{packed}"
    with pa.output_stream(str(path)) as stream:  # packs by the ending
        stream.write(LINE + b"\n" + LINE)
    assert path.read_bytes()[:1] != b"{" or not packed
    assert [row.error for row in read_source(Source("s", str(path)))] == [None, None]


def test_members_packed_one_behind_another_are_all_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(LINE + b"\n") * 3)
    assert len(list(read_source(Source("s", str(tmp_path / "rows.jsonl.gz"))))) == 3


def test_files_that_are_not_read_are_counted_in_a_line(tmp_path: Path, draw: Callable[..., bytes]) -> None:
    for name in ("a.jsonl", "b.xlsx", "c.jsonl.xz", "d.xz", "LICENSE", "e.png", "f.AVIF", ".hidden.xlsx"):
        (tmp_path / name).write_bytes(LINE)
    files, others = list_and_pass_over(*locate(str(tmp_path)))
    assert (files, others) == ([f"{tmp_path}/a.jsonl"], {"": 1, ".xlsx": 1, ".xz": 2})
    lines: list[str] = []
    list(read_source(Source("mine", str(tmp_path)), log=lines.append))
    assert lines[0] == (
        "mine: 4 files are of no kind that is read and were passed over: 1 without an ending, 1 .xlsx, 2 .xz"
    )
