import numpy as np
import pyarrow as pa
import pytest

from carevl.confidence.pairs import Pairs

NAN = np.nan


def items(**columns):
    table = {
        "item_id": ["x", "y"],
        "images": [["p"], ["q"]],
        "responses": [["one", "three"], ["a", "bb", " a "]],
        "source_preference": [[5.0, 1.0], None],
        "gold": [None, [1.0, 2.0, 1.0]],
    }
    return pa.table(table | columns)


def scores(rows):
    return pa.table(
        {
            "item_id": [row[0] for row in rows],
            "expert": [row[1] for row in rows],
            "view": [row[2] for row in rows],
            "scores": pa.array([row[3] for row in rows], pa.list_(pa.float64())),
        }
    )


ROWS = [
    ("y", "b", "none", [0.5, 0.0, -1.0]),
    ("x", "a", "dense", [3.0, 1.0]),
    ("y", "a", "dense", [1.0, 2.0, 4.0]),
    ("x", "other", "dense", [9.0, 1.0]),
    ("x", "b", "dense", [0.0, 2.0]),
    ("x", "a", "short", [0.0, 0.5]),
]


def build(item_table, score_table):
    return Pairs.from_arrow(item_table, score_table, ["a", "b"], ["dense", "short"])


def test_margins_are_first_minus_second_by_item_expert_and_view():
    pairs = build(items(), scores(ROWS))
    assert pairs.item_id.take(pa.array(pairs.item)).to_pylist() == ["x", "y", "y", "y"]
    assert pairs.first.tolist() == [0, 0, 0, 1]
    assert pairs.second.tolist() == [1, 1, 2, 2]
    np.testing.assert_array_equal(pairs.margins[0], [[2.0, -0.5], [-2.0, NAN]])
    np.testing.assert_array_equal(pairs.margins[1:, 0, 0], [-1.0, -3.0, -2.0])
    assert np.isnan(pairs.margins[1:, 1]).all()
    np.testing.assert_array_equal(pairs.no_caption[1:, 1], [0.5, 1.5, 1.0])
    assert np.isnan(pairs.no_caption[0]).all()


def test_labels_are_signs_and_missing_labels_are_nan():
    pairs = build(items(), scores(ROWS))
    np.testing.assert_array_equal(pairs.source, [1, NAN, NAN, NAN])
    np.testing.assert_array_equal(pairs.gold, [NAN, -1, 0, 1])


def test_equal_responses_are_found_whatever_the_white_space_and_lengths_leave_it_out():
    pairs = build(items(), scores(ROWS))
    assert pairs.equal.tolist() == [False, False, True, False]
    assert pairs.lengths.tolist() == [[3, 5], [1, 2], [1, 1], [2, 1]]


@pytest.mark.parametrize("bad", [None, [NAN, 1.0], [float("inf"), 1.0], [None, 1.0]])
def test_a_score_that_is_null_or_not_finite_is_a_missing_margin(bad):
    pairs = build(items(), scores([("x", "a", "dense", bad), ("x", "b", "dense", [2.0, 1.0])]))
    np.testing.assert_array_equal(pairs.margins[0, :, 0], [NAN, 1.0])


def test_an_item_without_a_pair_keeps_one_row():
    table = pa.table(
        {
            "item_id": ["none", "one", "failed", "good"],
            "images": [["p"]] * 4,
            "responses": [None, ["a"], ["a", "b"], ["a", "b"]],
            "error": [None, None, "unreadable", None],
        }
    )
    pairs = build(table, scores([("good", "a", "dense", [1.0, 0.0]), ("failed", "a", "dense", [1.0, 0.0])]))
    assert pairs.first.tolist() == [-1, -1, -1, 0]
    assert pairs.second.tolist() == [-1, -1, -1, 1]
    np.testing.assert_array_equal(pairs.margins[:, 0, 0], [NAN, NAN, NAN, 1.0])
    assert pairs.equal.tolist() == [False] * 4


@pytest.mark.parametrize(
    ("item_table", "score_table", "message"),
    [
        (items(item_id=["x", "x"]), scores([]), "item_id occurs twice"),
        (items(), scores([ROWS[1], ROWS[1]]), "occurs twice"),
        (items(), scores([("z", "a", "dense", [1.0, 2.0])]), "item z is not among"),
        (items(), scores([("y", "a", "dense", [1.0, 2.0])]), "item y: 2 values for 3 responses"),
        (items(gold=[[1.0], None]), scores([]), "gold of item x: 1 values for 2"),
    ],
)
def test_tables_that_do_not_fit_are_refused(item_table, score_table, message):
    with pytest.raises(ValueError, match=message):
        build(item_table, score_table)


def test_slices_of_record_batches_give_the_rows_of_the_whole():
    item_batch = items().combine_chunks().to_batches()[0]
    y_scores = scores([row for row in ROWS if row[0] == "y"])
    whole, part = build(items(), scores(ROWS)), build(item_batch.slice(1), y_scores)
    np.testing.assert_array_equal(part.margins, whole.margins[1:])
    np.testing.assert_array_equal(part.gold, whole.gold[1:])
    np.testing.assert_array_equal(part.equal, whole.equal[1:])


def test_blocks_join_to_the_whole_and_sort_back_from_any_order():
    parts = [
        build(items().slice(k, 1), scores([row for row in ROWS if row[0] == item])) for k, item in enumerate(("x", "y"))
    ]
    whole = build(items(), scores(ROWS))
    for joined in (Pairs.concat(parts), Pairs.concat(parts[::-1]).sorted()):
        np.testing.assert_array_equal(joined.margins, whole.margins)
        np.testing.assert_array_equal(joined.second, whole.second)
        assert joined.image_id.take(pa.array(joined.item)).to_pylist() == ["p", "q", "q", "q"]


def test_images_are_numbered_by_their_ids(make_pairs):
    pairs = make_pairs([1, 2, 3, 4], images=["q", "p", "q", "r"])
    assert pairs.images().tolist() == [1, 0, 1, 2]


def test_items_belong_together_by_their_first_image_and_one_without_any_stands_alone():
    pairs = build(items(images=[["q", "p"], []]), scores(ROWS))
    assert pairs.image_id.to_pylist() == ["q", "y"]
