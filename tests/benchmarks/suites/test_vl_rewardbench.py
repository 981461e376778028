from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from carevl.benchmarks.baselines import judge_trivially
from carevl.benchmarks.suites.vl_rewardbench import SUITE, official_number

ROW = {
    "id": "RLHF-V-1",
    "query": "What?",
    "response": ["bad", "good"],
    "human_ranking": [1, 0],
    "image": "images/1.png",
}


@pytest.fixture
def write(tmp_path):
    def make(*rows):
        path = tmp_path / "vl.jsonl"
        path.write_text("\n".join(json.dumps(ROW | row) for row in rows))
        return path

    return make


def _percent(result):
    return {name: None if value is None else round(100 * value, 1) for name, value in result.items()}


def test_the_real_rows_load_and_fall_into_their_groups(shared_data):
    rows = SUITE.load(shared_data / "vl_rewardbench.jsonl")
    assert len({row.key for row in rows}) == 1250
    assert Counter(row.group for row in rows) == {"general": 183, "hallucination": 749, "reasoning": 318}
    assert Counter(row.winner for row in rows) == {0: 1245, 1: 5}
    assert len({row.unit for row in rows}) == 1225


def test_longer_earns_the_known_shares_and_first_none(shared_data, values):
    rows = SUITE.load(shared_data / "vl_rewardbench.jsonl")
    result = {}
    for name in ("longer", "first", "random"):
        predictions = judge_trivially(name, SUITE, rows, SUITE.questions(rows, "strict"))
        result[name] = _percent(values(SUITE.score(rows, predictions, "strict")))
    assert (result["longer"]["general"], result["longer"]["hallucination"]) == (37.2, 40.3)
    assert result["longer"]["reasoning"] == pytest.approx(51.3)
    assert set(result["first"].values()) == {0.0}
    assert result["random"]["overall"] == pytest.approx(25, abs=4)


def test_first_is_at_chance_under_random_official_orders(shared_data, values):
    rows = SUITE.load(shared_data / "vl_rewardbench.jsonl")
    predictions = judge_trivially("first", SUITE, rows, SUITE.questions(rows, "official", draws=3))
    assert _percent(values(SUITE.score(rows, predictions, "official", draws=3)))["overall"] == pytest.approx(
        50, abs=4.5
    )


@pytest.mark.parametrize(
    ("row_id", "group"),
    [
        ("hallucination_pair-7", "hallucination"),
        ("RLAIF-V-7", "hallucination"),
        ("RLHF-V-7", "hallucination"),
        ("mathverse_7", "reasoning"),
        ("mmmu_pro_test_7", "reasoning"),
        ("wildvision-battle-7", "general"),
        ("svit-complex_reasoning-7", "general"),
    ],
)
def test_the_id_up_to_the_first_separator_names_the_group(write, row_id, group):
    assert SUITE.load(write({"id": row_id}))[0].group == group


def test_labels_are_ranks(write, tmp_path):
    row = SUITE.load(write({}))[0]
    assert row.winner == 1
    assert row.images[0].path == tmp_path / "images/1.png"


def test_one_id_with_two_questions_or_responses_is_two_rows(write):
    rows = SUITE.load(write({}, {"query": "Which?"}, {"response": ["bad", "better"]}))
    assert len({row.key for row in rows}) == 3


def test_swapped_repeats_merge_and_contradicting_ones_are_refused(write):
    assert len(SUITE.load(write({}, {"response": ["good", "bad"], "human_ranking": [0, 1]}))) == 1
    with pytest.raises(ValueError, match="contradicting"):
        SUITE.load(write({}, {"human_ranking": [0, 1]}))


def test_bad_rows_are_named(write):
    with pytest.raises(ValueError, match=r"row 2: expected 2 responses with ranks 0 and 1, found 2 and \[0, 0\]"):
        SUITE.load(write({}, {"human_ranking": [0, 0]}))
    with pytest.raises(ValueError, match=r"row 1: no value for query; fields found"):
        SUITE.load(write({"query": None}))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Overall Judgment: Answer 2 is better.", 2),
        ("**Overall Judgment:**\n\n**Answer 1** is better", 1),
        ("overall judgment - answer 2 is slightly better", 2),
        ("Therefore, Answer 1 is the better one", 1),
        ("Overall Judgment: Answer 1 is better. On reflection Answer 2 is better.", 2),
        ("Overall Judgment: Answer 2 is the slightly better", 2),
        ("Overall Judgment: Answer 2 isbetter", 2),
        ("Overall Judgment: Answer 3 is better", 3),
        ("Answer 1 is better.", None),
        ("Overall Judgment: Answer 1 is much better", None),
        ("Overall Judgment: both are good", None),
        ("", None),
    ],
)
def test_the_official_expression(text, number):
    assert official_number(text) == number


def test_official_prompts_show_random_orders_without_the_image_tag(write):
    rows = SUITE.load(write(*({"query": f"<image>\nWhat {n}?"} for n in range(40))))
    questions = list(SUITE.questions(rows, "official", draws=3, seed=1))
    assert len(questions) == 120
    assert {question.order for question in questions} == {(0, 1), (1, 0)}
    assert len({(question.key, question.sample) for question in questions}) == 120
    swapped = next(question for question in questions if question.order == (1, 0))
    assert "Answer 1: good\n\nAnswer 2: bad\n" in swapped.prompt
    assert "<image>" not in swapped.prompt
    assert swapped.prompt.startswith(" You are a highly capable")
    assert list(SUITE.questions(rows[20:], "official", draws=3, seed=1)) == questions[60:]
    assert list(SUITE.questions(rows, "official", draws=3, seed=2)) != questions


def test_strict_asks_both_orders_in_the_own_prompt(write):
    questions = list(SUITE.questions(SUITE.load(write({})), "strict"))
    assert [question.order for question in questions] == [(0, 1), (1, 0)]
    assert "Answer 1: good\nAnswer 2: bad" in questions[1].prompt
    assert SUITE.parse(questions[1], "x\nOverall Judgment: Answer 1 is better.").winner == 1
    assert SUITE.parse(questions[1], "Therefore Answer 1 is better").winner == questions[1].order[0]
    assert SUITE.parse(questions[1], "Therefore Answer 1 is not better").status == "none"


def test_official_parsing_turns_positions_into_responses(write):
    question = next(q for q in SUITE.questions(SUITE.load(write({})), "official", draws=9) if q.order == (1, 0))
    assert SUITE.parse(question, "Overall Judgment: Answer 1 is better").winner == 1
    assert SUITE.parse(question, "Overall Judgment: Answer 3 is better").status == "none"
    assert SUITE.parse(question, "Overall", truncated=True).status == "truncated"


def _say(answer, key, numbers, orders=((0, 1),)):
    texts = ["?" if number is None else f"Overall Judgment: Answer {number} is better" for number in numbers]
    orders = list(orders) * len(texts)
    winners = [orders[n][number - 1] if number in (1, 2) else None for n, number in enumerate(numbers)]
    return [
        answer(key, sample=n, order=orders[n], text=text, winner=winner)
        for n, (text, winner) in enumerate(zip(texts, winners, strict=True))
    ]


def test_the_official_majority_by_hand(pair, answer, values):
    draws = {"majority": (1, 2, 1), "minority": (1, 2, 2), "unread": (1, 1, None), "third": (3, 1, 2)}
    rows = [pair(key, gold=(1.0, 0.0)) for key in draws]
    predictions = [each for key, numbers in draws.items() for each in _say(answer, key, numbers)]
    scored = SUITE.score(rows, predictions, "official", draws=3)
    assert scored.right.tolist()[:2] == [1, 0]
    assert np.isnan(scored.right[2])
    assert scored.right[3] == 1
    assert values(scored)["overall"] == pytest.approx(2 / 3)
    first_two = SUITE.score(rows, predictions, "official", draws=2).right
    assert np.isnan(first_two[0])
    assert first_two[2] == 1


def test_the_official_verdict_is_about_what_was_shown(pair, answer):
    predictions = _say(answer, "k", (2,), orders=[(1, 0)])
    assert SUITE.score([pair("k")], predictions, "official", draws=1).right.tolist() == [1]


def test_a_row_with_fewer_draws_is_scored_by_those_as_officially(pair, answer, values):
    """`cal.py` counts a row that has fewer than k draws by the majority of what it has."""
    rows = [pair(f"{n}") for n in range(41)]
    draws = [(1, 1, 1, 2, 2)] * 32 + [(2, 1, 1, 2, 2)] * 8 + [(1,)]
    predictions = [each for row, numbers in zip(rows, draws, strict=True) for each in _say(answer, row.key, numbers)]
    assert values(SUITE.score(rows, predictions, "official", draws=5))["overall"] == pytest.approx(33 / 41)


def test_the_own_prompt_is_read_by_our_reader_alone(pair, answer):
    read = answer("k", text=r"\boxed{1}", winner=0)
    assert SUITE.score([pair("k")], [read], "official_scorer", draws=1).right.tolist() == [1]
    unread = answer("k", text="Therefore Answer 1 is better, they say.", status="none")
    assert np.isnan(SUITE.score([pair("k")], [unread], "official_scorer", draws=1).right[0])


def test_denominators_differ_between_groups(pair, answer, values):
    rows = [pair("a"), pair("b"), pair("c", group="reasoning"), pair("d", group="reasoning")]
    numbers = {"a": 1, "b": None, "c": 1, "d": 2}
    predictions = [each for key, number in numbers.items() for each in _say(answer, key, (number,))]
    result = values(SUITE.score(rows, predictions, "official_scorer", draws=1))
    assert result == {"overall": 2 / 3, "macro": 0.75, "general": 1.0, "reasoning": 0.5}


def test_a_judge_without_verdicts_scores_nothing_officially_and_zero_strictly(pair, answer, both_orders, values):
    rows = [pair("a"), pair("b")]
    silent = [each for row in rows for each in _say(answer, row.key, (None,))]
    assert values(SUITE.score(rows, silent, "official", draws=1))["overall"] is None
    strict = [each for row in rows for each in both_orders(row.key, None, None)]
    assert values(SUITE.score(rows, strict, "strict"))["overall"] == 0
