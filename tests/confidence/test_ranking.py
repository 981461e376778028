import numpy as np
import pyarrow as pa
from scipy.special import expit

from carevl.confidence.pairs import Pairs
from carevl.confidence.ranking import bradley_terry, rank_items


def items_of(*sizes):
    names = [f"i{k}" for k in range(len(sizes))]
    responses = [[f"response {r}" for r in range(size)] for size in sizes]
    table = pa.table({"item_id": names, "images": [[name] for name in names], "responses": responses})
    empty = pa.schema(
        [("item_id", pa.string()), ("expert", pa.string()), ("view", pa.string()), ("scores", pa.list_(pa.float32()))]
    ).empty_table()
    return Pairs.from_arrow(table, empty, ["a"], ["dense"])


def test_strengths_are_recovered_from_their_own_probabilities():
    strengths = np.array([[1.0, -0.5, 0.3, -0.8], [0.0, 0.0, 0.0, 0.0]])
    wins = expit(strengths[:, :, None] - strengths[:, None, :])
    np.testing.assert_allclose(bradley_terry(wins), strengths - strengths.mean(axis=1, keepdims=True), atol=1e-4)


def test_items_of_any_size_are_ranked_best_first():
    pairs = items_of(2, 3)
    p = np.array([0.2, 0.3, 0.9, 0.8], np.float32)  # item 1: 1 > 0 > 2
    assert rank_items(pairs, p).to_pylist() == [[1, 0], [1, 0, 2]]


def test_a_contradicting_pair_is_outvoted():
    pairs = items_of(4)
    p = np.array([0.9, 0.9, 0.45, 0.9, 0.9, 0.9], np.float32)  # 0 > 1 > 2 > 3, but 3 barely beats 0
    assert rank_items(pairs, p).to_pylist() == [[0, 1, 2, 3]]


def test_a_full_circle_and_ties_are_ranked_by_index():
    pairs = items_of(3, 2)
    circle = np.array([0.9, 0.1, 0.9, 0.5], np.float32)
    assert rank_items(pairs, circle).to_pylist() == [[0, 1, 2], [0, 1]]


def test_a_pair_without_probability_or_no_pair_at_all_gives_no_ranking():
    pairs = items_of(3, 1, 2)
    p = np.array([0.9, np.nan, 0.9, np.nan, 0.1], np.float32)
    assert rank_items(pairs, p).to_pylist() == [None, None, [1, 0]]
    assert rank_items(pairs.select(pairs.item > 0), p[3:]).to_pylist() == [None, None, [1, 0]]
