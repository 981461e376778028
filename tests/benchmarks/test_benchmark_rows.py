from __future__ import annotations

import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from carevl.benchmarks.rows import (
    Image,
    Row,
    missing_images,
    read_image,
    read_images,
    read_records,
    resampling_units,
    row_key,
    unique,
)
from carevl.data.turns import take_tags


def test_every_file_kind_gives_the_same_records(tmp_path):
    rows = [{"a": 'x,\n"y"', "b": "1"}, {"a": "z", "b": "2"}]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (tmp_path / "r.json").write_text(json.dumps(rows))
    (tmp_path / "r.csv").write_text('a,b\n"x,\n""y""",1\nz,2\n')
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    for suffix in ("jsonl", "json", "csv", "parquet"):
        assert [record.values for record in read_records(tmp_path / f"r.{suffix}")] == rows


def test_csv_fields_beyond_the_default_limit_are_read(tmp_path):
    (tmp_path / "r.csv").write_text(f"a\n{'w' * 200_000}\n")
    assert len(read_records(tmp_path / "r.csv")[0].values["a"]) == 200_000


def test_a_unicode_line_separator_does_not_split_a_line(tmp_path):
    (tmp_path / "r.jsonl").write_text(json.dumps({"a": "x\u2028y\x85"}, ensure_ascii=False), encoding="utf-8")
    assert [record.values for record in read_records(tmp_path / "r.jsonl")] == [{"a": "x\u2028y\x85"}]


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"name": name}))
    (tmp_path / "readme.md").write_text("not data")
    assert [record.values["name"] for record in read_records(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.jsonl", "{}\n{oops", "r.jsonl, line 2: not JSON"),
        ("r.jsonl", "{}\n[1]", "r.jsonl, row 2: expected an object, found"),
        ("r.xml", "<a/>", "cannot read .xml"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_records(tmp_path / name)


def test_absent_data_says_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a file or a folder of"):
        read_records(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_records(tmp_path / "nothing.jsonl")


def test_a_record_refuses_missing_and_mistyped_fields(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"id": "1", "query": null, "response": ["a", 2]}')
    record = read_records(tmp_path / "r.jsonl")[0]
    with pytest.raises(ValueError, match=r"row 1: no value for query or question; fields found: id, query, response"):
        record.text("query", "question")
    with pytest.raises(ValueError, match="response must be a list of texts"):
        record.texts("response")
    with pytest.raises(ValueError, match="response must be text"):
        record.text("response")


def test_keys_do_not_run_together():
    assert row_key("1", "ab", "c") != row_key("1", "a", "bc")
    assert row_key("1", "ab") != row_key("1", "ab", "")
    assert row_key(7, "ab") == row_key("7", "ab")
    row_key("1", "lone surrogate \ud800")


def test_repeats_merge_and_contradictions_are_refused(pair, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(unique([pair("k"), pair("k", responses=("two", "one"), gold=(0.0, 1.0)), pair("l")])) == 2
    assert "1 benchmark rows repeat" in caplog.text
    with pytest.raises(ValueError, match="contradicting labels"):
        unique([pair("k"), pair("k", gold=(0.0, 1.0))])


def test_images_are_found_missing_or_not_asked_for(tmp_path, pair):
    (tmp_path / "there.png").write_bytes(b"x")
    images = [
        read_image(value, tmp_path) for value in ({"bytes": b"x", "path": "gone.png"}, "there.png", "gone.png", None)
    ]
    assert images[0] == Image(images[0].name, b"x")
    rows = [pair(str(number), images=(image,) if image else ()) for number, image in enumerate(images)]
    assert [row.key for row in missing_images(rows)] == ["2"]
    assert rows[3].unit == "3"
    assert rows[2].unit == "gone.png"


def test_a_column_holds_one_image_none_or_a_list(tmp_path, pair):
    (tmp_path / "a.png").write_bytes(b"a")
    assert read_images(None, tmp_path) == read_images("", tmp_path) == read_images([], tmp_path) == ()
    assert [image.data for image in read_images({"bytes": b"x"}, tmp_path)] == [b"x"]
    assert [image.present for image in read_images(["a.png", "gone.png", None], tmp_path)] == [True, False, False]
    row = pair("k", images=read_images(["a.png", "gone.png"], tmp_path))
    assert missing_images([row]) == [row]
    assert row.unit == "a.png + gone.png"
    with pytest.raises(ValueError, match="k: 2 images and 1 places"):
        pair("k", images=row.images, places=(0,))


@pytest.mark.parametrize(
    ("question", "words", "places"),
    [
        ("What?", "What?", ()),
        (" What? ", " What? ", ()),
        ("<image>\nWhat?", "What?", (0,)),
        ("Is <image> like <image>?", "Is  like ?", (3, 9)),
        ("What is it? <image>", "What is it?", (11,)),
        ("<image><image>", "", (0, 0)),
    ],
)
def test_tags_are_places(question, words, places):
    assert take_tags(question) == (words, places)


def test_rows_that_images_connect_are_one_unit(pair):
    shown = {"a": "xy", "b": "z", "c": "zy", "d": "w", "e": "w", "f": "", "g": ""}
    rows = [pair(key, images=tuple(map(Image, names))) for key, names in shown.items()]
    rows += [pair("h", images=(Image("x"),), cluster="own"), pair("i", images=(Image("v"),), cluster="own")]
    assert resampling_units(rows) == ("x + y", "x + y", "x + y", "w", "w", "f", "g", "own", "own")


def test_winner_and_ranking_follow_the_gold():
    ranked = Row("k", "ranking", "g", "q", ("a", "b", "c"), (-2.0, 0.0, -1.0))
    assert ranked.ranking == (1, 2, 0)
    assert ranked.winner == 1
    assert Row("k", "pairwise", "g", "q", ("a", "b"), (0.0, 0.0)).winner == -1
