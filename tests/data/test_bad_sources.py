"""Each format with what real files have in them: broken images, odd texts, missing columns, mixed shards."""

from __future__ import annotations

import json
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from carevl.data.formats import FORMATS
from carevl.data.reading import Source
from carevl.settings.data import Source as SettingsSource
from carevl.settings.loader import load_settings
from carevl.stages import ingest
from carevl.store.run import Run
from carevl.store.schemas import ITEMS

Lines = Callable[..., Path]
IMAGES = {"image", "images", "img_path", "video", "file_name"}
QUESTION = "What is it?"


def changed(value: Any, old: str, new: str) -> Any:
    """The value with a text replaced wherever it occurs, packed JSON included."""
    if isinstance(value, dict):
        return {name: changed(one, old, new) for name, one in value.items()}
    if isinstance(value, list):
        return [changed(one, old, new) for one in value]
    if isinstance(value, str):
        return json.dumps(changed(json.loads(value), old, new)) if value.startswith("{") else value.replace(old, new)
    return value


def bomb() -> bytes:
    """A few bytes of PNG that claim 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture
def broken(tmp_path: Path, draw: Callable[..., bytes]) -> dict[str, str]:
    """Image files that are no good, with the kind of error that each gives."""
    files = {
        "bomb.png": (bomb(), "image_too_large"),
        "cut.jpg": (draw("JPEG", size=(64, 48))[:-200], "image_broken"),
        "zero.png": (b"", "image_broken"),
        "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image_broken"),
        "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "image_broken"),
    }
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    return {name: kind for name, (_, kind) in files.items()} | {"absent.png": "image_missing"}


OF_IMAGES = [name for name, known in FORMATS.items() if not known.of_text]


@pytest.mark.parametrize("name", OF_IMAGES)
def test_a_tenth_of_broken_images_costs_those_rows(
    name: str,
    broken: dict[str, str],
    write_lines: Lines,
    tmp_path: Path,
    draw: Callable[..., bytes],
    take_in: Callable[..., Any],
) -> None:
    for n in range(54):
        (tmp_path / f"{n}.png").write_bytes(draw("GIF" if n % 5 else "PNG", seed=n))  # most endings are wrong
    images = [*(f"{n}.png" for n in range(54)), *broken]
    path = write_lines([changed(FORMATS[name].example, "a.png", image) for image in images])
    pictures, items = take_in(Source("s", str(path), respond=FORMATS[name].of_questions))
    errors = Counter(item["error"]["kind"] for item in items if item["error"])
    assert errors == Counter(broken.values())
    assert sum(len(item["sources"]) for item in items) == 60
    assert sum(picture["error"] is None for picture in pictures) == 54


@pytest.mark.parametrize("name", FORMATS)
def test_odd_texts_and_repeated_ids_are_items(
    name: str, write_lines: Lines, tmp_path: Path, draw: Callable[..., bytes], take_in: Callable[..., Any]
) -> None:
    (tmp_path / "a.png").write_bytes(draw())
    long = "Why? " * 20_480
    questions = ["a\0b?", "\udfff what?", long.strip(), "ordinary?"]
    rows = [changed(FORMATS[name].example, QUESTION, question) | {"id": "same"} for question in questions]
    rows.append(changed(rows[-1], "A dog.", "A \0\ud800 dog."))
    _, items = take_in(Source("s", str(write_lines(rows)), respond=FORMATS[name].of_questions))
    if FORMATS[name].of_questions:  # the last row says something else of an answer alone
        assert [len(item["sources"]) for item in items if "ordinary?" in str(item["question"])] == [2]
        assert [item["error"] for item in items] == [None] * 4
        return
    assert [item["error"] for item in items] == [None] * 5
    assert {item["question"] for item in items} == {"a\ufffdb?", "\ufffd what?", long.strip(), "ordinary?"}
    assert "A \ufffd\ufffd dog." in {text for item in items for text in item["responses"]}
    assert pa.Table.from_pylist(items, ITEMS).num_rows == 5


@pytest.mark.parametrize(
    ("name", "column"), [(name, column) for name, known in FORMATS.items() for column in known.example]
)
def test_a_column_that_is_null_wrong_or_absent_in_some_rows_costs_those_rows(
    name: str, column: str, write_lines: Lines, tmp_path: Path, draw: Callable[..., bytes], take_in: Callable[..., Any]
) -> None:
    (tmp_path / "a.png").write_bytes(draw())
    good = FORMATS[name].example
    bad = [good | {column: None}, good | {column: 7.5}, {key: value for key, value in good.items() if key != column}]
    path = write_lines([good, *bad, changed(good, QUESTION, "Other?")])
    _, items = take_in(Source("s", str(path), respond=FORMATS[name].of_questions))
    assert sum(len(item["sources"]) for item in items) == 5
    errors = [item["error"]["kind"] for item in items if item["error"]]
    if column in IMAGES:
        # Where the format needs no column for images, a row without one is about text alone.
        assert errors == ["image_missing"] * (2 if name == "trl" else 3)
    elif (name, column) == ("coco-captions", "question"):
        assert errors == ["question"]  # the other two rows are asked what its source asks
    elif column not in ("ds_name", "source_preference", "answer", "answers"):
        assert len(errors) == 3
    assert {QUESTION, "Other?"} <= {item["question"] for item in items}


@pytest.mark.parametrize("name", FORMATS)
def test_a_shard_without_a_column_or_rows_costs_that_shard(
    name: str, write_lines: Lines, tmp_path: Path, draw: Callable[..., bytes], take_in: Callable[..., Any]
) -> None:
    (tmp_path / "a.png").write_bytes(draw())
    good = FORMATS[name].example
    write_lines([good], "rows/0.jsonl")
    write_lines([{"caption": "x"}], "rows/1.jsonl")
    write_lines([], "rows/2.jsonl")
    write_lines([changed(FORMATS["items"].example, QUESTION, "Of another format?")], "rows/3.jsonl")
    respond = FORMATS[name].of_questions
    _, items = take_in(Source("s", str(tmp_path / "rows"), image_root=str(tmp_path), respond=respond))
    assert [item["error"]["kind"] for item in items if item["error"]] == ["format"]
    assert {item["question"] for item in items if not item["error"]} == {QUESTION, "Of another format?"}


def test_a_whole_ingest_accounts_for_every_bad_row(
    broken: dict[str, str], write_lines: Lines, tmp_path: Path, draw: Callable[..., bytes]
) -> None:
    declared = []
    for name, row in ((name, FORMATS[name].example) for name in OF_IMAGES):
        (tmp_path / f"{name}.png").write_bytes(draw(seed=len(declared)))
        rows = [changed(row, "a.png", f"{name}.png"), *(changed(row, "a.png", image) for image in broken)]
        declared.append(SettingsSource(path=str(write_lines(rows, f"{name}.jsonl")), name=name))
    settings = load_settings("mini-questions", ["data.parts=3"])
    data = settings.data.model_copy(update={"sources": declared})
    settings = settings.model_copy(update={"data": data, "benchmarks": []})
    run = Run(tmp_path / "run")
    written = ingest.run_ingest(settings, run, tmp_path / "ingest", lambda *_: None)
    assert written["rows_in"] == 7 * len(declared)
    assert (written["rows_out"], written["errors"]) == (7 * len(declared), 6 * len(declared))
    assert (written["contaminated"], written["contamination"]) == (0, {})
    assert written["questions"] == sum(FORMATS[name].of_questions for name in OF_IMAGES) == 4


def test_two_sources_of_one_name_are_both_read_each_beside_its_own_images(
    write_lines: Lines, tmp_path: Path, draw: Callable[..., bytes]
) -> None:
    declared = []
    for n, folder in enumerate(("one", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(draw(seed=n))
        path = write_lines([FORMATS["spa-vl"].example], f"rows/{folder}.jsonl")
        declared.append(SettingsSource(path=str(path), name="same", image_root=str(tmp_path / folder)))
    settings = load_settings("mini", ["data.parts=3"])
    data = settings.data.model_copy(update={"sources": declared})
    settings = settings.model_copy(update={"data": data, "benchmarks": []})
    written = ingest.run_ingest(settings, Run(tmp_path / "run"), tmp_path / "ingest", lambda *_: None)
    assert (written["rows_in"], written["images"], written["errors"]) == (2, 2, 0)
