from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from carevl.benchmarks.diagnostics import count_verdicts
from carevl.benchmarks.outcomes import pairs_right, response_ratings
from carevl.benchmarks.predictions import by_key, draws_of, from_table, record, record_score, to_table
from carevl.benchmarks.questions import judge_question
from carevl.benchmarks.rows import Row
from carevl.benchmarks.suites import SUITES
from carevl.judging.verdicts import Verdict
from carevl.store.schemas import PREDICTIONS


def test_predictions_survive_parquet(tmp_path, pair):
    row = pair("k")
    question = judge_question("b", row, "strict", (1, 0))
    answers = [
        record(question, "j", "text", Verdict("ok", "", winner=1), probability=0.25),
        record(question, "j", "", Verdict("truncated", "")),
        record(question, "j", "", Verdict("ok", "", ranking=(1, 0))),
        record_score(question, "j", -3.5),
    ]
    pq.write_table(to_table(answers), tmp_path / "p.parquet")
    read = pq.read_table(tmp_path / "p.parquet")
    assert from_table(read) == answers
    assert answers[0].order == (1, 0)
    assert answers[3].rating == -3.5
    assert read.schema.equals(PREDICTIONS)


def test_every_field_is_documented():
    assert all(len(field.metadata[b"description"]) > 10 for field in PREDICTIONS)


def test_a_table_without_a_column_is_refused():
    with pytest.raises(ValueError, match="no column benchmark"):
        from_table(pa.table({"key": ["k"]}))


def test_missing_and_doubled_predictions_are_refused(pair, answer):
    rows = [pair("k"), pair("l")]
    with pytest.raises(ValueError, match="1 of 2 rows lack a prediction: l"):
        by_key(rows, [answer("k")])
    with pytest.raises(ValueError, match=r"two predictions for k, order \[0, 1\], sample 0"):
        by_key(rows, [answer("k"), answer("k", judge="another"), answer("l")])
    with pytest.raises(ValueError, match="1 of 2 rows lack a prediction: l"):
        draws_of(rows, [answer("k"), answer("k", sample=1)], 2)


def test_a_row_with_fewer_draws_has_those(pair, answer):
    first, second, third = answer("k"), answer("k", sample=1), answer("k", sample=2)
    drawn = draws_of([pair("k"), pair("l")], [third, second, first, answer("l")], 2)
    assert drawn == {"k": [first, second], "l": [answer("l")]}


def test_predictions_of_rows_left_out_are_ignored(pair, answer):
    assert list(by_key([pair("k")], [answer("k"), answer("other")])) == ["k"]


def test_a_pair_is_right_only_in_both_orders(pair, both_orders):
    cases = {"right": (0, 0), "wrong": (1, 1), "position": (0, 1), "half": (0, None), "silent": (None, None)}
    rows = [pair(key) for key in cases]
    predictions = [each for key, winners in cases.items() for each in both_orders(key, *winners)]
    assert pairs_right(rows, predictions).tolist() == [1, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="1 of 5 rows lack every order: right"):
        pairs_right(rows, predictions[1:])


def test_a_tied_pair_is_never_right(pair, both_orders):
    rows = [pair("tie", gold=(0.0, 0.0))]
    assert pairs_right(rows, both_orders("tie", 0, 0)).tolist() == [0]
    assert pairs_right(rows, both_orders("tie", None, None)).tolist() == [0]


def test_a_pair_is_right_if_the_better_response_is_rated_higher_and_half_if_they_are_equal(pair, answer):
    cases = {"right": (4.5, 4.4), "wrong": (2.0, 2.1), "equal": (3.0, 3.0), "silent": (5.0, None)}
    rows = [pair(key) for key in cases]
    predictions = [
        answer(key, protocol="pointwise", order=(i,), rating=rating)
        for key, ratings in cases.items()
        for i, rating in enumerate(ratings)
    ]
    assert pairs_right(rows, predictions).tolist() == [1, 0, 0.5, 0]
    with pytest.raises(ValueError, match="1 of 4 rows lack a rating of every response: right"):
        pairs_right(rows, predictions[1:])


@pytest.mark.parametrize(("ratings", "right"), [((3.0, 3.0), 1), ((3.0, 2.9), 0)])
def test_a_tied_pair_is_right_if_both_are_rated_alike(pair, answer, ratings, right):
    predictions = [answer("k", protocol="pointwise", order=(i,), rating=rating) for i, rating in enumerate(ratings)]
    assert pairs_right([pair("k", gold=(0.0, 0.0))], predictions).tolist() == [right]


def test_ratings_are_averaged_over_draws(answer):
    row = Row("k", "pointwise", "g", "q", ("a", "b"), (1.0, 0.0))
    answers = [
        answer("k", order=(i,), sample=s, rating=r) for i, s, r in ((0, 0, 4), (0, 1, 5), (1, 0, 2), (1, 1, None))
    ]
    ratings = response_ratings([row], answers, 2)[0]
    assert ratings[0] == 4.5
    assert ratings[1] != ratings[1]
    assert response_ratings([row], answers, 1)[0].tolist() == [4, 2]
    assert response_ratings([row], answers[:3], 2)[0].tolist() == [4.5, 2]
    with pytest.raises(ValueError, match="1 of 1 rows lack a rating of every response"):
        response_ratings([row], answers[:2], 2)


@pytest.mark.parametrize(("text", "wording"), [("Both are equally good.", None), ("I see two. [[C]]", "[[{verdict}]]")])
def test_a_stated_tie_is_kept_whatever_the_protocol_makes_of_it(small_world, text, wording):
    suite = SUITES["vl-rewardbench"]
    rows = suite.load(small_world / "dev/vl_rewardbench.parquet")[:1]
    question = replace(next(iter(suite.questions(rows, "strict"))), wording=wording)
    prediction = record(question, "judge", text, suite.parse(question, text))
    assert (prediction.status, prediction.winner, prediction.tie) == ("none", None, True)
    [stored] = from_table(to_table([prediction]))
    counts = count_verdicts([stored])
    assert (counts.ties, counts.unread) == (1, [])
    earlier = to_table([prediction]).drop_columns(["tie"])
    assert from_table(earlier)[0].tie is None
