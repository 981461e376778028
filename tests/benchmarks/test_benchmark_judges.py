"""Judges of every kind through every benchmark: trivial ones, useless ones, and what is said about how they answer."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from carevl.benchmarks.baselines import TRIVIAL_JUDGES, judge_trivially
from carevl.benchmarks.diagnostics import count_statuses, diagnose
from carevl.benchmarks.predictions import from_table, record
from carevl.benchmarks.rows import missing_images
from carevl.benchmarks.run import JudgeRun, predict
from carevl.benchmarks.suites import SUITES
from carevl.benchmarks.suites.vl_rewardbench_published import VL_REWARDBENCH, check
from carevl.judging.verdicts import Verdict
from carevl.settings.models import Judge
from carevl.stats.bootstrap import estimate
from carevl.store.table import Table

PROTOCOLS = ("official", "official_scorer", "strict", "verdict_prob")
USELESS = {
    "nonsense": "purple monkey dishwasher 1 2 A B",
    "nothing": "",
    "both tags": "[[A]] [[B]] Overall Judgment: Answer 1 is better.\nOverall Judgment: Answer 2 is better.",
}


@pytest.fixture(scope="module")
def world(small_world):
    return small_world


@pytest.fixture(scope="module")
def drawn(world):
    """miniworld's dev rows, as the benchmarks' own loaders read them."""
    return {
        "vl-rewardbench": SUITES["vl-rewardbench"].load(world / "dev/vl_rewardbench.parquet"),
        "mllm-judge": SUITES["mllm-judge"].load(world / "dev/mllm_judge"),
    }


def test_miniworld_files_load_like_public_ones(drawn):
    pairs, mixed = drawn["vl-rewardbench"], drawn["mllm-judge"]
    assert {row.group for row in pairs} == {"general", "hallucination", "reasoning"}
    assert len(pairs) == 480
    assert Counter(row.task for row in mixed) == {"pointwise": 160, "pairwise": 160, "ranking": 40}
    assert not missing_images([*pairs, *mixed])
    assert pairs[0].images[0].data.startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["vl-rewardbench", "mllm-judge"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("judge", list(TRIVIAL_JUDGES))
def test_trivial_judges_answer_every_question(drawn, name, protocol, judge):
    suite, rows = SUITES[name], drawn[name][::4]
    questions = list(suite.questions(rows, protocol))
    predictions = list(judge_trivially(judge, suite, rows, questions))
    assert [(each.key, each.order, each.sample) for each in predictions] == [
        (q.key, q.order, q.sample) for q in questions
    ]
    silent = [each for each in predictions if each.status != "ok"]
    lengths = {row.key: [len(text) for text in row.responses] for row in rows}
    assert all(judge == "longer" and len(set(lengths[each.key])) == 1 for each in silent)
    assert estimate(suite.score(rows, predictions, protocol), resamples=50)
    assert predictions == list(judge_trivially(judge, suite, rows, questions))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_oracle_scores_full_marks(drawn, protocol):
    for name, best in (("vl-rewardbench", {"overall": 1, "macro": 1}), ("mllm-judge", {"score": 1, "batch": 0})):
        suite, rows = SUITES[name], drawn[name]
        of_key = {row.key: row for row in rows}
        predictions = []
        for question in suite.questions(rows, protocol):
            row = of_key[question.key]
            truth = {
                "pairwise": Verdict("ok", "", winner=row.winner),
                "pointwise": Verdict("ok", "", rating=int(row.gold[0])),
                "ranking": Verdict("ok", "", ranking=row.ranking),
            }[question.task]
            text = suite.write_verdict(question, truth)
            predictions.append(record(question, "oracle", text, suite.parse(question, text)))
        result = estimate(suite.score(rows, predictions, protocol), resamples=20)
        assert {key: result[key]["value"] for key in best} == pytest.approx(best)
        if name == "mllm-judge":
            assert result["pair_without_ties"]["value"] == 1


@pytest.mark.parametrize("text", USELESS.values(), ids=list(USELESS))
@pytest.mark.parametrize("name", ["vl-rewardbench", "mllm-judge"])
def test_a_useless_judge_earns_nothing_strictly(drawn, name, text):
    suite, rows = SUITES[name], drawn[name]
    predictions = [record(q, "useless", text, suite.parse(q, text)) for q in suite.questions(rows, "strict")]
    result = estimate(suite.score(rows, predictions, "strict"), resamples=20)
    worst = {"overall": 0, "macro": 0, "score": 0, "pair_with_ties": 0, "batch": 1}
    assert all(result[key]["value"] == value for key, value in worst.items() if key in result)
    assert "ok" not in {each.status for each in predictions}
    how = estimate(diagnose(rows, predictions), resamples=20)
    assert (how["parse_rate"]["value"], how["order_consistency"]["value"]) == (0, 0)
    assert how["first_position_rate"]["value"] is None
    assert how["length_slope"]["value"] is None


def test_both_tags_are_a_status_of_their_own(drawn):
    suite, rows = SUITES["vl-rewardbench"], drawn["vl-rewardbench"][:3]
    questions = list(suite.questions(rows, "strict"))
    predictions = [record(q, "j", USELESS["both tags"], suite.parse(q, USELESS["both tags"])) for q in questions]
    assert count_statuses(predictions) == {"ok": 0, "none": 0, "both": 6, "truncated": 0}


def test_an_unknown_trivial_judge_is_named():
    with pytest.raises(ValueError, match="no trivial judge 'shorter'; there are longer, first, random"):
        next(judge_trivially("shorter", SUITES["vl-rewardbench"], [], []))


def test_reward_questions_get_scores_not_texts(shared_data):
    suite = SUITES["mm-rlhf-rewardbench"]
    rows = suite.load(shared_data / "mm_rlhf_rewardbench.jsonl")
    predictions = list(judge_trivially("longer", suite, rows, suite.questions(rows, "official")))
    result = estimate(suite.score(rows, predictions, "official"), resamples=20)
    longer = sum(len(row.responses[0]) > len(row.responses[1]) for row in rows) / len(rows)
    assert result["accuracy"]["value"] == pytest.approx(longer)


def test_position_and_consistency_by_hand(pair, both_orders):
    rows = [pair(key) for key in "abcd"]
    winners = {"a": (0, 0), "b": (0, 1), "c": (1, 0), "d": (0, None)}
    predictions = [each for key, pair in winners.items() for each in both_orders(key, *pair)]
    result = estimate(diagnose(rows, predictions), resamples=20)
    # First shown: response 0, then 1. a: 1 of 2 verdicts for the first shown, b: 2 of 2, c: 0 of 2, d: 1 of 1.
    assert result["first_position_rate"]["value"] == pytest.approx(4 / 7)
    assert result["order_consistency"]["value"] == 0.25
    assert result["parse_rate"]["value"] == 7 / 8


def _slope(rows, predictions):
    return estimate(diagnose(rows, predictions), resamples=20)["length_slope"]["value"]


def test_the_length_slope_sees_length_beyond_the_label(pair, answer):
    lengths = [(1, 3), (3, 1), (1, 3), (3, 1)]
    gold = [(1.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.0, 1.0)]
    rows = [
        pair(str(n), responses=("x" * a, "y" * b), gold=label)
        for n, ((a, b), label) in enumerate(zip(lengths, gold, strict=True))
    ]
    longer = [answer(row.key, winner=int(len(row.responses[1]) > len(row.responses[0]))) for row in rows]
    assert _slope(rows, longer) == pytest.approx(0.5 / math.log(2))
    right = [answer(row.key, winner=row.winner) for row in rows]
    assert _slope(rows, right) == pytest.approx(0)
    assert _slope(rows[:3], right[:3]) == pytest.approx(0)  # here the better response is often the shorter one
    always_zero = [answer(row.key, winner=0) for row in rows]
    assert _slope(rows, always_zero) == pytest.approx(0)


def test_the_length_slope_does_not_depend_on_which_response_comes_first(pair, answer):
    lengths, verdicts = [(2, 9), (7, 1), (4, 4), (3, 8)], [1, 0, -1, 0]
    rows = [pair(str(n), responses=("x" * a, "y" * b)) for n, (a, b) in enumerate(lengths)]
    swapped = [pair(row.key, responses=row.responses[::-1], gold=row.gold[::-1]) for row in rows]
    other = {0: 1, 1: 0, -1: -1}
    slope = _slope(rows, [answer(row.key, winner=w) for row, w in zip(rows, verdicts, strict=True)])
    assert slope == pytest.approx(
        _slope(swapped, [answer(r.key, winner=other[w]) for r, w in zip(rows, verdicts, strict=True)])
    )
    assert slope != pytest.approx(0)


def test_published_rows_that_do_not_agree_with_themselves_are_flagged():
    checks = {row.judge: check(row) for row in VL_REWARDBENCH}
    assert [judge for judge, result in checks.items() if not result.consistent] == [
        "GPT-4o",
        "Claude 3.5",
        "Qwen2-VL-7B",
    ]
    assert checks["GPT-4o"].overall == pytest.approx((49.1 * 183 + 67.6 * 749 + 70.5 * 318) / 1250)
    assert checks["Qwen2-VL-7B"].macro == pytest.approx((31.6 + 19.1 + 51.1) / 3)


def test_nothing_asked_gives_a_table_without_rows(tmp_path):
    target = Table(tmp_path)
    counts = predict([JudgeRun(Judge(path="miniworld:judge"), "j", target)], [], lambda *_: None)
    assert counts == {"j": {"rows_in": 0, "rows_out": 0, "errors": 0, "rows_taken": 0}}
    assert from_table(target.read()) == []
