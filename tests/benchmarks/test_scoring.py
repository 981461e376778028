"""Judges that score responses: every task and protocol becomes verdicts by the order of scores."""

from __future__ import annotations

import math

import pytest

from carevl.benchmarks.questions import Question, ask_for_scores
from carevl.benchmarks.rows import Image, Row
from carevl.benchmarks.scoring import judge_by_scores
from carevl.benchmarks.suites import SUITES
from carevl.errors import UserError
from carevl.models.row_errors import Failure, SomeRowsError
from tests.helpers.families import draw_picture

PICTURES = {"a": draw_picture(0), "broken": "it is no image"}


class ByLength:
    """Longer responses score higher; one that names a fox is refused."""

    def __init__(self):
        self.asked = []

    def score(self, requests):
        self.asked += requests
        scores = [float(len(request.response)) for request in requests]
        failures = {i: Failure("refused", "a fox") for i, each in enumerate(requests) if "fox" in each.response}
        if failures:
            raise SomeRowsError([None if i in failures else score for i, score in enumerate(scores)], failures)
        return scores


def _row(*responses, task="pairwise", image="a"):
    gold = tuple(range(len(responses)))
    return Row("k", task, "g", "How many?", responses, gold, (Image(image),))


def _ask(row, order, task=None, protocol="strict"):
    asked = Question("b", protocol, "k", order, 0, task or row.task, "in words", row.images)
    return ask_for_scores(asked, row)


def test_a_pair_is_won_by_the_higher_score_in_both_orders_and_asked_once():
    row, scorer = _row("Two of them.", "Two."), ByLength()
    both = judge_by_scores(scorer, "judge", [_ask(row, order) for order in ((0, 1), (1, 0))], PICTURES, 8)
    assert [each.winner for each in both] == [0, 0]
    assert [each.probability for each in both] == pytest.approx([1 / (1 + math.exp(-8))] * 2)
    assert len(scorer.asked) == 2
    assert {request.prompt for request in scorer.asked} == {"How many?"}


def test_equal_scores_are_a_tie():
    [tied] = judge_by_scores(ByLength(), "judge", [_ask(_row("Two.", "Six."), (1, 0))], PICTURES, 8)
    assert (tied.winner, tied.status, tied.probability) == (None, "none", 0.5)


def test_rankings_and_ratings():
    row = _row("One.", "Four of them.", "Three.", task="ranking")
    questions = [_ask(row, (2, 0, 1)), _ask(row, (1,), "pointwise")]
    ranked, rated = judge_by_scores(ByLength(), "judge", questions, PICTURES, 8)
    assert ranked.ranking == (1, 2, 0)
    assert rated.rating == 13.0


def test_what_is_not_scored_is_an_error_of_its_row():
    rows = [_row("A fox.", "Two."), _row("One.", "Two of them."), _row("One.", "Two.", image="broken")]
    found = judge_by_scores(ByLength(), "judge", [_ask(row, (0, 1)) for row in rows], PICTURES, 8)
    assert [each.error and each.error["message"] for each in found] == ["a fox", None, "it is no image"]
    assert [each.winner for each in found] == [None, 1, None]


def test_images_are_scored_in_their_places_and_too_many_are_an_error():
    rows = [
        Row("k", "pairwise", "g", "Is  older?", ("Yes.", "No."), (1.0, 0.0), images, places)
        for images, places in [((), ()), ((Image("b"), Image("a")), (0, 3)), ((Image("a"),) * 3, ())]
    ]
    scorer, pictures = ByLength(), {**PICTURES, "b": draw_picture(1)}
    found = judge_by_scores(scorer, "judge", [_ask(row, (0, 1)) for row in rows], pictures, 2)
    assert [each.winner for each in found] == [0, 0, None]
    assert "its prompt has 3 images" in found[2].error["message"]
    assert [(request.images, request.places) for request in scorer.asked[::2]] == [
        ((), ()),
        ((pictures["b"], pictures["a"]), (0, 3)),
    ]


@pytest.mark.parametrize("protocol", ["official", "verdict_prob"])
def test_protocols_that_read_words_are_refused(protocol):
    with pytest.raises(UserError, match=f"{protocol} reads what a judge writes.*--protocol strict"):
        _ask(_row("One.", "Two."), (0, 1), protocol=protocol)


def test_a_suite_that_asks_for_scores_gets_them_with_the_image():
    row = _row("One.", "Two.")
    [first, second] = SUITES["mm-rlhf-rewardbench"].questions([row], "official")
    asked = [ask_for_scores(question, row) for question in (first, second)]
    assert [each.responses for each in asked] == [("One.",), ("Two.",)]
    assert {each.response for each in asked} == {None}
