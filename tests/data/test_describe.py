"""What `carevl sources` says of the formats and of data on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from carevl.data.describe import describe_formats, describe_source, describe_sources
from carevl.data.formats import FORMATS
from carevl.data.formats.detection import UnknownFormatError
from carevl.data.images import ImageLimits
from carevl.data.reading import Source
from carevl.data.urls import UrlFetcher

Write = Callable[..., Path]


def lines_about(path: Path, rows: int = 1000) -> list[str]:
    return list(describe_source(Source("s", str(path)), rows, ImageLimits()))


def test_every_format_is_listed_with_its_columns_and_an_example_that_reads() -> None:
    lines = list(describe_formats())
    assert lines[::3] == list(FORMATS)
    for name, columns, example in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        assert all(column in columns for names in FORMATS[name].columns for column in names.split("|"))
        assert FORMATS[name].read(json.loads(example.removeprefix("  example  "))).question == "What is it?"


def test_a_file_is_described_by_format_rows_and_first_problems(
    write_lines: Write, tmp_path: Path, draw: Callable[..., bytes]
) -> None:
    (tmp_path / "a.png").write_bytes(draw())
    good = FORMATS["spa-vl"].example
    path = write_lines([good, good | {"chosen": None}, good | {"image": "b.png"}, good | {"image": "c.png"}])
    file, *problems = lines_about(path)
    assert file == f"{path}: spa-vl, 4 rows, 3 with an error"
    assert problems[0] == "  1 responses, first row 1: `chosen` is null or absent"
    assert problems[1].startswith("  2 image_missing, first row 2: 'b.png': no such file")
    assert lines_about(path, 2)[0] == f"{path}: spa-vl, first 2 rows, 1 with an error"


def test_images_of_a_file_in_a_folder_are_looked_up_from_the_folder(
    write_lines: Write, tmp_path: Path, draw: Callable[..., bytes]
) -> None:
    (tmp_path / "a.png").write_bytes(draw())
    write_lines([FORMATS["spa-vl"].example], "rows/one.jsonl")
    write_lines([{"caption": "x"}], "rows/two.jsonl")
    (tmp_path / "rows/three.xlsx").write_bytes(b"")
    passed_over, one, two, problem = lines_about(tmp_path)
    assert passed_over == "1 files are of no kind that is read and were passed over: 1 .xlsx"
    assert one.endswith("one.jsonl: spa-vl, 1 rows, 0 with an error")
    assert two.endswith("two.jsonl: no known format, 1 rows, 1 with an error")
    assert "Closest is" in problem


def test_columns_that_no_format_has_are_shown_with_the_closest(write_lines: Write) -> None:
    path = write_lines([{"picture": "a.png", "question": "Q?", "chosen": "a", "rejected": "b"}])
    with pytest.raises(
        UnknownFormatError, match=r"picture \(text\), .* Closest is spa-vl, which also needs `image\|video`"
    ):
        lines_about(path)


def test_addresses_are_fetched_as_a_run_fetches_them(write_lines: Write, draw: Callable[..., bytes]) -> None:
    class Fetcher(UrlFetcher):
        def fetch(self, url: str, max_bytes: int) -> bytes:
            return draw()

    path = write_lines([FORMATS["spa-vl"].example | {"image": "https://example.com/a.png"}])
    source = Source("s", str(path))
    assert list(describe_sources([source], 9, ImageLimits(), Fetcher()))[1].endswith("1 rows, 0 with an error")
    assert "image_refused" in list(describe_sources([source], 9, ImageLimits()))[2]


def test_a_name_that_is_not_utf8_is_shown(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.jsonl")).write_text("{}")
    described = "\n".join(describe_source(Source("s", str(tmp_path), "spa-vl"), 9, ImageLimits()))
    assert described.encode()
    assert "its name is not UTF-8" in described
