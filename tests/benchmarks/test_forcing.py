"""Judgments that were cut before their verdicts, and the verdicts that they are made to end with."""

from __future__ import annotations

import numpy as np
import pytest

from carevl.benchmarks.answering import EngineJudge, judge_questions
from carevl.benchmarks.diagnostics import count_verdicts
from carevl.benchmarks.forcing import ForcedVerdict, read_forced, write_value
from carevl.benchmarks.predictions import from_table, to_table
from carevl.benchmarks.questions import strict_questions
from carevl.benchmarks.rows import Row
from carevl.benchmarks.suites import SUITES
from carevl.data.images import ImageLimits, decode_rgb
from carevl.judging.verdict_tokens import VERDICT_TEXTS
from carevl.models.engines.base import Generation
from carevl.settings.models import Judge


def test_the_likeliest_number_is_the_verdict_of_a_reply_that_was_begun():
    logprobs = [[-9.0] * len(VERDICT_TEXTS) for _ in range(2)]
    logprobs[0][VERDICT_TEXTS.index(" 2")] = np.log(0.6)
    logprobs[0][VERDICT_TEXTS.index(" 1")] = np.log(0.2)
    generation = Generation(" 1 is", 2, True, tuple(map(tuple, logprobs)))
    forced = read_forced("pairwise", generation, "Two cups.")
    assert forced.text == "Two cups.\nOverall Judgment: Answer 2 is better."
    assert forced.probabilities == pytest.approx([0.25, 0.75])
    assert read_forced("pointwise", Generation(" 4", 1, True)).text == "Overall Judgment: Rating 4"
    assert read_forced("ranking", Generation(" 2 > 1", 4, True), "A.").text == "A.\nOverall Judgment: Ranking 2 > 1"
    assert write_value("pointwise", 4.5) == "Overall Judgment: Rating 4.5."


@pytest.fixture(scope="module")
def questions(small_world):
    """Questions of each task about the rows of a benchmark, and their pictures."""
    suite = SUITES["mllm-judge"]
    rows = suite.load(small_world / "dev/mllm_judge")
    chosen = [row for task in ("pointwise", "pairwise", "ranking") for row in [r for r in rows if r.task == task][:2]]
    pictures = {row.shown: decode_rgb(row.images[0].read(), ImageLimits(), None) for row in chosen}
    return suite, list(suite.questions(chosen, "strict")), pictures


@pytest.mark.parametrize("force_verdicts", [True, False])
def test_a_judgment_that_was_cut_ends_with_a_verdict_where_that_is_asked_for(questions, force_verdicts):
    suite, asked, pictures = questions
    judge = EngineJudge(Judge(path="miniworld:judge", engine="transformers", dtype="float32", max_tokens=3))
    predictions = judge_questions(
        judge, "short", suite, asked, pictures, 0, max_images=8, force_verdicts=force_verdicts
    )
    counts = count_verdicts(from_table(to_table(predictions)))
    pairwise = [each for question, each in zip(asked, predictions, strict=True) if question.task == "pairwise"]
    if not force_verdicts:
        assert (counts.statuses["truncated"], counts.forced) == (len(asked), 0)
        return
    forced = [each for each in predictions if each.forced]
    assert counts.line().endswith(f": {len(forced)} ok ({len(forced)} forced), {len(asked) - len(forced)} truncated")
    assert {each.status for each in predictions if not each.forced} <= {"truncated"}
    assert all(each.forced and each.probability is not None for each in pairwise)
    assert all(each.forced and 1 <= each.rating <= 5 for each in predictions if len(each.order) == 1)
    assert all(not each.text.startswith("Overall Judgment") for each in predictions)


class _Rating:
    """A judge that rates every response 4 in its words, and hesitates between 2 and 4 once it is made to end."""

    def answer(self, requests, decoding, logprob_texts):
        return [Generation(f"So.\n{written}", 9, written.endswith(":")) for written in self.written(requests)]

    def force(self, judgments):
        self.forced = [cut.begun.response_prefix for cut in judgments]
        probabilities = np.array([0.0, 0.75, 0.0, 0.25, 0.0])
        return [ForcedVerdict(f"{cut.evidence}\nOverall Judgment: Rating 2.", probabilities) for cut in judgments]

    def written(self, requests):
        texts = ["Overall Judgment: Rating 4.", "Overall Judgment:", "Overall Judgment: I refuse."]
        return texts[: len(requests)]


def test_ratings_one_by_one_are_means_and_a_refusal_has_none():
    row = Row("k", "pairwise", "g", "How many?", ("a", "b", "c"), (1.0, 0.0, 0.0))
    asked = list(strict_questions("pairwise", [row], "pointwise"))
    assert [(each.order, each.task) for each in asked] == [((i,), "pointwise") for i in range(3)]
    judge = _Rating()
    ratings = judge_questions(judge, "j", SUITES["pairwise"], asked, {}, seed=0, max_images=8)
    assert [each.rating for each in ratings] == [2.5, 2.5, None]
    assert [each.status for each in ratings] == ["ok", "ok", "none"]
    assert [each.forced for each in ratings] == [False, True, False]
    assert judge.forced == ["So.\nOverall Judgment: Rating"] * 2
