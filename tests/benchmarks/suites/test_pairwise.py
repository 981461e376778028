from __future__ import annotations

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from carevl.benchmarks.suites.pairwise import SUITE

ROW = {"id": 1, "image": "1.png", "question": "What?", "responses": ["a", "b"], "better": 1, "category": "photo"}


@pytest.fixture
def write(tmp_path):
    def make(*rows):
        path = tmp_path / "pairs.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return path

    return make


def _tuple(row):
    return row.key, row.group, row.question, row.responses, row.gold, row.images[0].name


def test_the_same_rows_are_read_from_jsonl_csv_and_parquet(write, tmp_path):
    rows = [ROW, ROW | {"id": 2, "better": 0, "image": "2.png"}, ROW | {"id": 3, "better": None}]
    loaded = SUITE.load(write(*rows))
    assert [(row.winner, row.group, row.images[0].path) for row in loaded] == [
        (1, "photo", tmp_path / "1.png"),
        (0, "photo", tmp_path / "2.png"),
        (-1, "photo", tmp_path / "1.png"),
    ]
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROW))
        writer.writeheader()
        writer.writerows(row | {"responses": json.dumps(row["responses"])} for row in rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    for name in ("pairs.csv", "pairs.parquet"):
        assert [_tuple(row) for row in SUITE.load(tmp_path / name)] == [_tuple(row) for row in loaded]


@pytest.mark.parametrize(("better", "winner"), [(0, 0), (1.0, 1), ("1", 1), (-1, -1), ("-1", -1), ("", -1), (None, -1)])
def test_better_is_an_index_or_a_tie(write, better, winner):
    assert SUITE.load(write(ROW | {"better": better}))[0].winner == winner


SEVERAL = {"images": ["1.png", "2.png"], "question": "Is <image> like <image>?"}


def test_several_images_are_read_from_jsonl_csv_and_parquet(write, tmp_path):
    own = {name: value for name, value in ROW.items() if name != "image"}
    rows = [own | SEVERAL, own | {"id": 2, "images": ["2.png", "1.png"]}, own | {"id": 3, "images": []}]
    loaded = SUITE.load(write(*rows))
    assert [[image.path for image in row.images] for row in loaded] == [
        [tmp_path / "1.png", tmp_path / "2.png"],
        [tmp_path / "2.png", tmp_path / "1.png"],
        [],
    ]
    assert [list(row.turn.parts()) for row in loaded] == [
        ["Is ", None, " like ", None, "?"],
        [None, None, "What?"],
        ["What?"],
    ]
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {name: json.dumps(row[name]) for name in ("responses", "images")} for row in rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    for name in ("pairs.csv", "pairs.parquet"):
        assert SUITE.load(tmp_path / name) == loaded


def test_files_in_a_list_of_images_are_told_apart(tmp_path):
    row = {**ROW, "image": None, "images": [{"bytes": b"one", "path": None}, {"bytes": b"two", "path": None}]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "pairs.parquet")
    [read] = SUITE.load(tmp_path / "pairs.parquet")
    assert [image.data for image in read.images] == [b"one", b"two"]


def test_image_and_category_may_be_left_out(write):
    [row] = SUITE.load(write({name: value for name, value in ROW.items() if name not in ("image", "category")}))
    assert (row.images, row.group) == ((), "uncategorized")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"better": 2}, "better must be 0, 1, -1 or null, found 2"),
        ({"better": True}, "better must be 0, 1, -1 or null, found True"),
        ({"better": "a"}, "better must be 0, 1, -1 or null, found 'a'"),
        ({"responses": ["a"]}, "expected 2 responses, found 1"),
        ({"responses": "a, b"}, "responses must be a JSON list, found 'a, b'"),
        ({"responses": ["a", 2]}, "responses must be a list of texts"),
        ({"image": ["1.png", "2.png"]}, "image must be one image, found a list of 2; call the column images"),
        ({"images": ["1.png", "2.png"]}, "has both image and images; give one of them"),
        ({"image": None, "images": "1.png"}, "images must be a JSON list, found '1.png'"),
        ({"image": None, "images": {"a": 1}}, "images must be a list, found"),
        (
            {"image": None, "images": ["1.png", "2.png"], "question": "Is <image> it?"},
            "the question has 1 tags <image> for 2 images",
        ),
        ({"category": "overall"}, "category 'overall' is the name of a figure"),
    ],
)
def test_bad_rows_are_named(write, fields, message):
    with pytest.raises(ValueError, match=f"row 2: {message}"):
        SUITE.load(write(ROW | {"id": 0}, ROW | fields))


def test_a_row_that_does_not_say_which_is_better_is_no_tie(write):
    with pytest.raises(ValueError, match="row 1: no value for better; fields found: category"):
        SUITE.load(write({name: value for name, value in ROW.items() if name != "better"}))


def test_both_orders_are_asked_whatever_the_protocol(write):
    rows = SUITE.load(write(ROW))
    for protocol in ("strict", "official_scorer", "official"):
        assert [question.order for question in SUITE.questions(rows, protocol, draws=3)] == [(0, 1), (1, 0)]


def test_a_stated_tie_is_a_verdict(write):
    question = next(SUITE.questions(SUITE.load(write(ROW)), "strict"))
    assert SUITE.parse(question, "Overall Judgment: Answer 2 is better.").winner == 1
    assert SUITE.parse(question, "Overall Judgment: both answers are equally good.").winner == -1
    assert SUITE.parse(question, "I cannot see the image.").winner is None


def test_figures_by_category_and_without_ties(pair, both_orders, values):
    tie = (0.0, 0.0)
    rows = [
        pair("a", group="photo"),
        pair("b", group="photo"),
        pair("c", group="chart"),
        pair("d", group="chart", gold=tie),
        pair("e", group="chart", gold=tie),
    ]
    predictions = [
        *both_orders("a", 0, 0),
        *both_orders("b", 0, 1),
        *both_orders("c", 0, 0),
        *both_orders("d", -1, -1),
        *both_orders("e", -1, None),
    ]
    figures = values(SUITE.score(rows, predictions, "strict"))
    assert figures == {
        "overall": pytest.approx(3 / 5),
        "macro": pytest.approx((1 / 2 + 2 / 3) / 2),
        "photo": 1 / 2,
        "chart": pytest.approx(2 / 3),
        "without_ties": pytest.approx(2 / 3),
    }
    decided = [row for row in rows if row.winner == 0]
    assert "without_ties" not in values(SUITE.score(decided, predictions, "strict"))
