from __future__ import annotations

import json
import math

import pytest

from carevl.benchmarks.suites.rewardbench2 import SUITE

ROW = {"id": "1", "prompt": "q", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Focus"}


@pytest.fixture
def make(tmp_path):
    def rows(*changes):
        (tmp_path / "r.jsonl").write_text("\n".join(json.dumps(ROW | row) for row in changes))
        return SUITE.load(tmp_path / "r.jsonl")

    return rows


@pytest.fixture
def rated(answer):
    def predict(rows, scores):
        return [
            answer(row.key, order=(i,), rating=rating)
            for row, ratings in zip(rows, scores, strict=True)
            for i, rating in enumerate(ratings)
        ]

    return predict


@pytest.mark.parametrize(
    ("scores", "credit"),
    [
        ((3, 1, 2, 0), 1.0),
        ((3, 3, 2, 0), 0.5),
        ((3, 3, 3, 3), 0.25),
        ((1, 2, 0, 0), 0.0),
        ((-7.5, -8, -9, -10), 1.0),
        ((None, None, None, None), 0.25),
        ((1, None, None, None), 1.0),
    ],
)
def test_the_credit_is_split_between_ties(make, rated, values, scores, credit):
    rows = make({})
    assert values(SUITE.score(rows, rated(rows, [scores]), "official"))["Focus"] == credit


@pytest.mark.parametrize(
    ("scores", "right"), [((3, 1, 2, 0), 1), ((3, 3, 2, 0), 0), ((3, 1, None, 0), 0), ((None,) * 4, 0)]
)
def test_strict_needs_every_rating_and_no_tie(make, rated, values, scores, right):
    rows = make({})
    assert values(SUITE.score(rows, rated(rows, [scores]), "strict"))["Focus"] == right


def test_the_ties_formula_by_hand(make, rated, values):
    ties = {"subset": "Ties", "rejected": ["c", "d"]}
    rows = make(
        ties | {"id": "ref:1"},
        ties | {"id": "tied:1", "chosen": ["a", "b"]},
        ties | {"id": "ref:2"},
        ties | {"id": "tied:2", "chosen": ["a", "b"]},
        ties | {"id": "tied:3", "chosen": ["a", "b"]},
    )
    scores = [(6, 1, 0), (9, 8, 5, 4), (1, 2, 0), (3, 1, 0, 0), (5, 5, 6, 0)]
    # N=1: gaps 5 and 3, spread 1. N=2: gaps -1 and 1, spread 2. N=3 has no ref: accuracy only.
    tied, ref, preferred, hard = 2 / 3, 1 / 2, 1 / 2, 1 / 2
    margin = (math.tanh(3 / 1 - 1) + math.tanh(-1 / 2 - 1)) / 2
    expected = 0.3 * tied + 0.3 * ref + 0.2 * preferred + 0.2 * hard + 0.01 * margin
    assert values(SUITE.score(rows, rated(rows, scores), "official"))["Ties"] == pytest.approx(expected)


def test_equal_right_scores_do_not_divide_by_zero(make, rated, values):
    ties = {"subset": "Ties", "rejected": ["c"]}
    rows = make(ties | {"id": "ref:1"}, ties | {"id": "tied:1", "chosen": ["a", "b"]})
    assert values(SUITE.score(rows, rated(rows, [(2, 1), (2, 2, 1)]), "official"))["Ties"] == pytest.approx(1.01)
    assert values(SUITE.score(rows, rated(rows, [(1, 1), (1, 1, 1)]), "official"))["Ties"] == 0


def test_macro_is_the_mean_of_the_subsets(make, rated, values):
    rows = make({}, {"id": "2"}, {"id": "3", "subset": "Math"})
    scores = [(1, 0, 0, 0), (0, 1, 0, 0), (1, 0, 0, 0)]
    assert values(SUITE.score(rows, rated(rows, scores), "official")) == {"macro": 0.75, "Focus": 0.5, "Math": 1.0}


def test_ref_and_tied_of_one_question_are_resampled_together(make):
    ties = {"subset": "Ties"}
    rows = make(ties | {"id": "ref:7"}, ties | {"id": "tied:7", "chosen": ["a", "b"]})
    assert rows[0].unit == rows[1].unit


def test_a_reward_model_is_asked_every_response(make):
    questions = list(SUITE.questions(make({}), "official"))
    assert [question.response for question in questions] == ["a", "b", "c", "d"]
    assert all(question.prompt == "q" and not question.images for question in questions)


def test_strict_asks_once_however_many_draws(make):
    assert len(list(SUITE.questions(make({}), "strict", draws=3))) == 4
    assert len(list(SUITE.questions(make({}), "official_scorer", draws=3))) == 12


def test_bad_rows_are_named(make):
    with pytest.raises(ValueError, match=r"row 1: needs a chosen and a rejected response, found 1, 0"):
        make({"rejected": []})
    with pytest.raises(ValueError, match="an id of the subset Ties is ref:N or tied:N, found '1'"):
        make({"subset": "Ties"})
