from __future__ import annotations

import numpy as np
import pytest

from carevl.benchmarks.coverage import cover, draws_several
from carevl.benchmarks.outcomes import scored_rows
from carevl.benchmarks.questions import strict_questions
from carevl.benchmarks.results import compare_judges, score_judge
from carevl.benchmarks.rows import Row
from carevl.benchmarks.suite import Suite
from carevl.benchmarks.suites import SUITES
from carevl.errors import UserError
from carevl.stats.bootstrap import mean

PAIRS = SUITES["vl-rewardbench"]


class Lengths(Suite):
    """A benchmark whose rows are no matter of right and wrong."""

    name = "lengths"
    summary = "none"

    def load(self, path, images=None):
        return []

    def questions(self, rows, protocol, *, draws=None, seed=0):
        return strict_questions(self.name, rows, protocol)

    def score(self, rows, predictions, protocol, *, draws=None):
        return scored_rows(rows, np.full(len(rows), np.nan), {"length": mean([len(row.question) for row in rows])})


def test_rows_are_covered_that_were_answered_in_every_order(pair, answer, both_orders):
    rows = [pair("both"), pair("one"), pair("none")]
    predictions = [*both_orders("both", 0, None), answer("one", order=(1, 0)), *both_orders("other", 0, 0)]
    covered = cover(PAIRS, rows, "strict", predictions, None)
    assert [row.key for row in covered.rows] == ["both"]
    assert [each.key for each in covered.predictions] == ["both", "both"]
    assert (covered.k, covered.fewer_draws) == (None, 0)
    assert cover(PAIRS, rows, "strict", [], None).rows == []


def test_one_order_will_do_where_it_is_drawn(pair, answer):
    rows = [pair("a"), pair("b"), pair("c")]
    drawn = [answer("a", order=(0, 1)), answer("b", order=(1, 0)), answer("b", order=(1, 0), sample=1)]
    covered = cover(PAIRS, rows, "official", drawn, None)
    assert [row.key for row in covered.rows] == ["a", "b"]
    assert (covered.k, covered.fewer_draws) == (2, 1)
    assert cover(PAIRS, rows, "official", drawn, 1).fewer_draws == 0
    with pytest.raises(UserError, match="--k 3: no row has more than 2 draws under official"):
        cover(PAIRS, rows, "official", drawn, 3)


def test_draws_of_single_responses_are_those_that_each_has(answer):
    rows = [
        Row("a", "pairwise", "g", "q", ("x", "y"), (1.0, 0.0)),
        Row("b", "pairwise", "g", "q", ("x", "y"), (1.0, 0.0)),
    ]
    drawn = [answer("a", order=(i,), sample=s, rating=1.0) for i, s in ((0, 0), (0, 1), (1, 0))]
    drawn += [answer("b", order=(0,), rating=1.0)]
    covered = cover(SUITES["mm-rlhf-rewardbench"], rows, "official", drawn, None)
    assert [row.key for row in covered.rows] == ["a"]
    assert covered.k == 1


@pytest.mark.parametrize(
    ("suite", "protocol", "draws"),
    [
        ("vl-rewardbench", "official", True),
        ("vl-rewardbench", "strict", False),
        ("pairwise", "official_scorer", False),
    ],
)
def test_protocols_that_draw_are_told_from_others(suite, protocol, draws, pair):
    assert draws_several(SUITES[suite], [pair("a")], protocol) == draws
    assert not draws_several(SUITES[suite], [], protocol)


def test_a_row_counts_that_has_a_majority(pair, answer):
    rows = [pair("a"), pair("b")]
    texts = [f"Overall Judgment: Answer {n} is better" for n in (1, 2)]
    split = [answer(row.key, protocol="official", sample=n, text=texts[n], winner=n) for row in rows for n in (0, 1)]
    score = score_judge(PAIRS, rows, split)["official"]
    assert (score["rows"], score["scored"], score["k"]) == (2, 0, 2)
    score = score_judge(PAIRS, rows, [*split, answer("a", protocol="official", sample=2, text=texts[0], winner=0)])
    assert (score["official"]["scored"], score["official"]["fewer_draws"]) == (1, 1)


def test_rows_count_by_their_verdict_where_none_is_right_or_wrong(pair, both_orders):
    rows = [pair("a"), pair("b")]
    predictions = [*both_orders("a", 0, None), *both_orders("b", None, None)]
    assert score_judge(Lengths(), rows, predictions)["strict"]["scored"] == 1


def test_two_judges_meet_on_the_rows_and_draws_that_both_have(pair, answer):
    rows = [pair("a"), pair("b"), pair("c")]

    def judge(winner, *keys, draws=1):
        text = f"Overall Judgment: Answer {winner + 1} is better"
        facts = {"protocol": "official", "text": text, "winner": winner}
        return [answer(key, sample=n, **facts) for key in keys for n in range(draws)]

    met = compare_judges(PAIRS, rows, judge(0, "a", "b", draws=3), judge(1, "b", "c"))["official"]
    assert (met.rows, met.scored, met.k) == (1, (1, 1), 1)
    assert (met.comparison.only_a, met.comparison.only_b) == (1, 0)
    assert compare_judges(PAIRS, rows, judge(0, "a"), judge(1, "b")) == {}
