from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from carevl.benchmarks.rows import Row
from carevl.benchmarks.suites.mllm_judge import SUITE, official_tags
from carevl.benchmarks.suites.mllm_judge_metrics import levenshtein

SHOWN = {"id": 7, "image_path": "7.jpg", "original_dataset": "coco", "instruction": "Describe."}
SCORE = SHOWN | {"score_id": 1, "name": "m", "answer": "text", "human": "4"}
PAIR = SHOWN | {"pair_id": 1, "answer1": {"name": "m", "answer": "x"}, "answer2": {"name": "n", "answer": "y"}}
BATCH = SHOWN | {"answers": [{"name": "m", "answer": text} for text in "wxyz"], "human_answer": "CDAB"}


@pytest.fixture
def write(tmp_path):
    def make(name, *rows):
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, rows)))
        return path

    return make


def test_the_real_rows_load(shared_data):
    rows = [row for kind in ("score", "pair", "batch") for row in SUITE.load(shared_data / f"mllm_judge_{kind}.jsonl")]
    assert [row.task for row in rows] == ["pointwise"] * 4 + ["pairwise"] * 3 + ["ranking"] * 2
    assert [row.gold[0] for row in rows[:4]] == [3, 4, 3, 3]
    assert [row.winner for row in rows[4:7]] == [0, 1, -1]
    assert [row.ranking for row in rows[7:]] == [(2, 3, 0, 1), (3, 2, 1, 0)]


def test_a_folder_loads_its_three_files_and_nothing_else(write, tmp_path):
    write("Score.jsonl", SCORE)
    write("pair.jsonl", PAIR | {"human": "B"})
    write("batch.jsonl", BATCH)
    write("other.jsonl", {"x": 1})
    assert {row.task for row in SUITE.load(tmp_path)} == {"pointwise", "pairwise", "ranking"}


def test_an_image_id_is_no_row_id(write):
    assert len(SUITE.load(write("s.jsonl", SCORE, SCORE | {"score_id": 2}))) == 2
    assert len(SUITE.load(write("p.jsonl", PAIR | {"human": "A"}, PAIR | {"pair_id": 2, "human": "A"}))) == 2
    assert len({row.key for row in SUITE.load(write("b.jsonl", BATCH, BATCH | {"instruction": "Count."}))}) == 2
    assert SUITE.load(write("s.jsonl", SCORE, SCORE))[0].unit == "7.jpg"


def test_skipped_pairs_are_left_out_and_counted(write, caplog):
    with caplog.at_level(logging.WARNING):
        rows = SUITE.load(
            write("p.jsonl", PAIR | {"human_answer": -1}, PAIR | {"human_answer": "C"}, PAIR | {"human": "-1"})
        )
    assert [row.winner for row in rows] == [-1]
    assert "2 rows were skipped by the annotators" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (SCORE | {"human": "good"}, "expected a rating from 1 to 5, found 'good'"),
        (PAIR | {"human": "D"}, "expected A, B, C or -1, found 'D'"),
        (BATCH | {"human_answer": "CDAA"}, "expected a permutation of 4 letters, found 'CDAA'"),
        (PAIR | {"human": "A", "answer2": "y"}, "expected {name, answer}, found 'y'"),
        (PAIR, "no value for human_answer or human"),
    ],
)
def test_bad_rows_are_named(write, row, message):
    with pytest.raises(ValueError, match=f"r.jsonl, row 1: {message}"):
        SUITE.load(write("r.jsonl", row))


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ('{"Analysis": "[[B]] is short", "Judgement": "[[A]]"}', ["A"]),
        ("```json\n{'Judgement': [[b]]}\n```", ["B"]),
        ("[[C]], [[D]], [[A]], [[B]]", ["C", "D", "A", "B"]),
        ("[[A]] is my Judgement", ["A"]),
        ("I prefer A", []),
        ("", []),
    ],
)
def test_official_tags(text, tags):
    assert official_tags(text) == tags


def _asked(task, protocol="official"):
    n = {"pointwise": 1, "pairwise": 2, "ranking": 4}[task]
    return next(SUITE.questions([Row("k", task, "g", "q", tuple("wxyz"[:n]), (0.0,) * n)], protocol))


@pytest.mark.parametrize(
    ("task", "text", "status", "read"),
    [
        ("pairwise", "[[A]]", "ok", 0),
        ("pairwise", "[[C]]", "ok", -1),
        ("pairwise", "[[A]] [[B]]", "both", None),
        ("pairwise", "[[D]]", "none", None),
        ("pairwise", "", "none", None),
        ("pointwise", "[[5]]", "ok", 5),
        ("pointwise", "[[6]]", "none", None),
        ("pointwise", "[[4]] or [[5]]", "both", None),
        ("ranking", "[[B]], [[A]], [[D]], [[C]]", "ok", (1, 0, 3, 2)),
        ("ranking", "[[B]], [[A]], [[D]]", "none", None),
        ("ranking", "[[B]], [[B]], [[D]], [[C]]", "none", None),
    ],
)
def test_official_parsing(task, text, status, read):
    verdict = SUITE.parse(_asked(task), text)
    assert verdict.status == status
    result = {"pairwise": verdict.winner, "pointwise": verdict.rating, "ranking": verdict.ranking}[task]
    assert result == read


def test_a_cut_answer_is_truncated_but_a_read_one_is_not():
    assert SUITE.parse(_asked("pairwise"), "I think", truncated=True).status == "truncated"
    assert SUITE.parse(_asked("pairwise"), "[[A]]", truncated=True).status == "ok"


def test_a_tie_that_the_judge_states_counts_in_its_own_prompt_too():
    asked = _asked("pairwise", "official_scorer")
    tie = SUITE.parse(asked, "Overall Judgment: Both answers are equally good.")
    assert (tie.status, tie.winner) == ("none", -1)
    refusal = SUITE.parse(asked, "I'm sorry, I can't help with that.")
    assert (refusal.status, refusal.winner) == ("none", None)


def test_official_prompts_are_put_together_as_in_the_script():
    prompt = _asked("pairwise").prompt
    assert prompt.endswith(
        "Here is the input:\n\n[The Start of User Instruction]\nq\n[The End of User Instruction]\n"
        "[The Start of Assistant A’s Answer]\nw\n[The End of Assistant A’s Answer]\n"
        "[The Start of Assistant B’s Answer]\nx\n[The End of Assistant B’s Answer]"
    )
    assert "[The End of User Instruction][The Start of Assistant A’s Answer]\nw\n" in _asked("ranking").prompt
    assert '"[[5]]" to indicate' in _asked("pointwise").prompt


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("ABCD", "ABCD", 0), ("ABCD", "DCBA", 1), ("ABCD", "BACD", 0.5), ("CD", "CDAB", 0.5), ("ABCDA", "ABCD", 0.2)],
)
def test_levenshtein_by_hand(a, b, distance):
    assert levenshtein(a, b) == levenshtein(b, a) == distance


def _row(key, task, gold, group="coco"):
    return Row(key, task, group, "q", ("x",) * len(gold), gold)


def test_both_definitions_without_ties_by_hand(answer, values):
    gold = {"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (0.0, 0.0), "d": (1.0, 0.0)}
    rows = [_row(key, "pairwise", label) for key, label in gold.items()]
    said = {"a": 0, "b": -1, "c": -1, "d": None}
    predictions = [answer(key, protocol="official", winner=winner) for key, winner in said.items()]
    result = values(SUITE.score(rows, predictions, "official", draws=1))
    assert result["pair_with_ties"] == pytest.approx(2 / 3)
    assert result["pair_without_gold_ties"] == 0.5
    assert result["pair_without_ties"] == 1.0


def test_datasets_and_draws_are_averaged_unweighted(answer, values):
    rows = [_row(str(n), "pairwise", (1.0, 0.0), "coco") for n in range(4)] + [_row("9", "pairwise", (1.0, 0.0), "WIT")]
    draws = [
        answer(row.key, sample=sample, winner=0 if (sample == 0 or row.group == "WIT") else 1)
        for row in rows
        for sample in range(2)
    ]
    result = values(SUITE.score(rows, draws, "official_scorer", draws=2))
    assert (result["pair_with_ties/coco"], result["pair_with_ties/WIT"]) == (0.5, 1.0)
    assert result["pair_with_ties"] == 0.75


def test_a_row_with_fewer_draws_leaves_the_others_of_its_denominator(answer, values):
    rows = [_row("a", "pairwise", (1.0, 0.0)), _row("b", "pairwise", (1.0, 0.0))]
    draws = [answer("a", sample=0, winner=1), answer("b", sample=0, winner=0), answer("b", sample=1, winner=0)]
    assert values(SUITE.score(rows, draws, "official", draws=2))["pair_with_ties"] == (0.5 + 1.0) / 2


def test_rows_count_that_have_a_verdict_and_strictly_all(answer):
    rows = [_row("a", "pointwise", (1.0,)), _row("b", "pointwise", (2.0,))]
    predictions = [answer("a", order=(0,), rating=3), answer("b", order=(0,), status="none")]
    assert SUITE.score(rows, predictions, "official_scorer", draws=1).n_counted == 1
    assert SUITE.score(rows, predictions, "strict").n_counted == 2


def test_pearson_per_dataset_leaves_unread_ratings_out_officially(answer, values):
    rows = [_row(str(n), "pointwise", (float(n),)) for n in range(1, 5)]
    ratings = {"1": 2, "2": 3, "3": 5, "4": None}
    predictions = [answer(key, order=(0,), rating=rating) for key, rating in ratings.items()]
    result = values(SUITE.score(rows, predictions, "official_scorer", draws=1))
    assert result["score"] == pytest.approx(np.corrcoef([1, 2, 3], [2, 3, 5])[0, 1])
    strict = values(SUITE.score(rows, predictions, "strict"))
    assert strict["score"] == pytest.approx(np.corrcoef([1, 2, 3, 4], [2, 3, 5, 10 / 3])[0, 1])


@pytest.mark.parametrize("rating", [3, None])
def test_a_constant_or_silent_rater_is_undefined_officially_and_zero_strictly(answer, values, rating):
    rows = [_row(str(n), "pointwise", (float(n),)) for n in range(1, 5)]
    predictions = [answer(row.key, order=(0,), rating=rating) for row in rows]
    assert values(SUITE.score(rows, predictions, "official_scorer", draws=1))["score"] is None
    assert values(SUITE.score(rows, predictions, "strict"))["score"] == 0


def test_rankings_officially_count_the_letters_written_and_strictly_the_permutation(answer, values):
    rows = [_row(key, "ranking", (0.0, -1.0, -2.0, -3.0)) for key in "ab"]
    shown = (0, 1, 2, 3)
    partial = answer("a", protocol="official", order=shown, text="[[A]], [[B]]", status="none")
    silent = answer("b", protocol="official", order=shown, text="no idea", status="none")
    assert values(SUITE.score(rows, [partial, silent], "official", draws=1))["batch"] == 0.5
    said = [answer("a", order=shown, ranking=(1, 0, 2, 3)), answer("b", order=shown, status="none")]
    assert values(SUITE.score(rows, said, "strict"))["batch"] == pytest.approx((0.5 + 1) / 2)


def test_right_holds_pairs_only(answer, both_orders):
    rows = [_row("a", "pairwise", (1.0, 0.0)), _row("b", "pointwise", (4.0,))]
    scored = SUITE.score(rows, [*both_orders("a", 0, 0), answer("b", order=(0,), rating=4)], "strict")
    assert scored.right[0] == 1
    assert np.isnan(scored.right[1])
    assert {name for name in scored.statistics if "/" not in name} == {
        "score",
        "pair_with_ties",
        "pair_without_ties",
        "pair_without_gold_ties",
    }
