"""The judge as users have it: one answer from two orders, ratings, rankings, and clear errors."""

import gc
import io
import itertools
import json
import math
import shutil
import weakref

import numpy as np
import pytest
from PIL import Image

from carevl import RewardModel
from carevl.benchmarks.answering import EngineJudge, judge_questions
from carevl.benchmarks.questions import strict_questions
from carevl.benchmarks.rows import Image as RowImage
from carevl.benchmarks.rows import Row
from carevl.benchmarks.suites import SUITES
from carevl.cli.judge import judgment_lines
from carevl.data.images import bound_pixels
from carevl.errors import UserError
from carevl.judging.turns import Turn
from carevl.miniworld.items import draw_items
from carevl.miniworld.scenes import png
from carevl.miniworld.weights import WEIGHTS
from carevl.models.judge_spec import JudgeSpec
from carevl.settings.models import Judge

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def judge():
    return RewardModel("miniworld:judge", max_tokens=80)


@pytest.fixture(scope="module")
def cases():
    drawn = itertools.islice(draw_items("dev", "reward model"), 24)
    return [(image, items[0].question.text, [r.text for r in items[0].responses], items[0]) for image, items in drawn]


def test_one_case_is_judged_as_it_is_among_many(judge, cases):
    images, questions, responses, _ = zip(*cases[:6], strict=True)
    many = judge.judge_all(images, questions, responses)
    single = judge.judge(images[2], questions[2], responses[2])
    assert single.winner == many[2].winner
    assert single.probability == pytest.approx(many[2].probability, abs=1e-3)
    assert single.texts == many[2].texts
    assert {judgment.forced for judgment in many} == {False}


def test_several_images_none_and_turns_are_asked_about(judge, cases):
    (first, *_), (second, question, responses, _) = cases[:2]
    asked = f"And in  now? {question}"
    turns = [Turn("user", "What is it?", (0,)), Turn("assistant", "A circle."), Turn("user", asked, (7,))]
    shown = ([first, second], question), ([first, second], turns), (None, question), (second, question)
    judged = judge.judge_all(*zip(*shown, strict=True), [responses] * 4)
    assert judged[3].texts == judge.judge(second, question, responses).texts
    assert len({each.texts for each in judged}) >= 3


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([Turn("user", "What is it?", (0, 0))], "there are 1 images, and the turns have places for 2"),
        ([Turn("user", "What is it?", (0,)), Turn("assistant", "A circle.")], "ends with a turn of the user"),
        ([], "ends with a turn of the user"),
    ],
)
def test_turns_that_do_not_fit_are_refused(judge, cases, turns, message):
    image, _, responses, _ = cases[0]
    with pytest.raises(UserError, match=message):
        judge.judge(image, turns, responses)


def test_swapping_the_responses_swaps_the_verdict(judge, cases):
    images, questions, responses, _ = zip(*cases, strict=True)
    straight = judge.judge_all(images, questions, responses)
    swapped = judge.judge_all(images, questions, [shown[::-1] for shown in responses])
    for a, b in zip(straight, swapped, strict=True):
        assert 0.5 <= a.probability <= 1
        assert a.probability == pytest.approx(b.probability, abs=1e-3)
        assert a.consistent == b.consistent
        if a.probability > 0.51:
            assert a.winner == 1 - b.winner


def test_it_is_better_than_chance_and_says_why(judge, cases):
    images, questions, responses, items = zip(*cases, strict=True)
    judgments = judge.judge_all(images, questions, responses)
    right = [item.responses[judgment.winner].right for item, judgment in zip(items, judgments, strict=True)]
    assert np.mean(right) > 0.5
    assert all(judgment.evidence for judgment in judgments)


def test_scores_are_ratings_and_better_responses_get_more(judge, cases):
    pairs = [(image, question, item) for image, question, _, item in cases]
    best, worst = (
        judge.score_all(
            [image for image, _, _ in pairs],
            [question for _, question, _ in pairs],
            [next(r.text for r in item.responses if r.right == right) for _, _, item in pairs],
        )
        for right in (True, False)
    )
    assert all(1 <= score <= 5 for score in best + worst)
    assert np.mean(best) > np.mean(worst)


def test_the_protocol_pointwise_measures_these_scores(judge, cases):
    image, question, responses, _ = cases[0]
    row = Row("k", "pairwise", "", question, tuple(responses[:2]), (1.0, 0.0), (RowImage("a", data=png(image)),))
    asked = list(strict_questions("pairwise", [row], "pointwise"))
    engine = EngineJudge(Judge(path=judge.path, engine="transformers", max_tokens=80))
    rated = judge_questions(engine, "j", SUITES["pairwise"], asked, {"a": image}, seed=0, max_images=8)
    scores = judge.score_all([image] * 2, [question] * 2, responses[:2])
    assert [each.rating for each in rated] == pytest.approx(scores, abs=1e-4)


def test_a_ranking_holds_every_response_once_and_agrees_with_the_duels(judge, cases):
    image, question, responses, _ = cases[0]
    three = [*responses, "I do not know."]
    ranking = judge.rank(image, question, three)
    assert sorted(ranking.order) == [0, 1, 2]
    assert ranking.status == "ok"
    wins = [ranking.win_probabilities[i] for i in ranking.order]
    assert wins == sorted(wins, reverse=True)
    assert sum(wins) == pytest.approx(1.5)
    two, judgment = judge.rank(image, question, responses), judge.judge(image, question, responses)
    assert two.order[0] == judgment.winner
    assert two.win_probabilities[two.order[0]] == pytest.approx(judgment.probability)


@pytest.mark.parametrize("wording", ["REFUSING", "NEGATING", "TIED"])
def test_a_judgment_without_a_verdict_says_so(wording, judge, cases, tmp_path):
    image, question, responses, _ = cases[0]
    silent = RewardModel("miniworld:judge", engine=f"tests.helpers.wordings:{wording}", max_tokens=80)
    judgment = silent.judge(image, question, responses)
    assert (judgment.status, judgment.winner, judgment.probability, judgment.consistent) == ("none", None, None, False)
    ranking = silent.rank(image, question, [*responses, "I do not know."])
    assert (ranking.status, ranking.win_probabilities) == ("none", [None, None, None])
    assert math.isnan(silent.score(image, question, responses[0]))
    file = tmp_path / "scene.png"
    file.write_bytes(png(image))
    [pair] = (json.loads(line) for line in judgment_lines(silent, file, question, responses, as_json=True))
    assert (pair["status"], pair["winner"], pair["probability"]) == ("none", None, None)
    [rated] = (json.loads(line) for line in judgment_lines(silent, file, question, responses[:1], as_json=True))
    assert rated == {"rating": None, "status": "none"}
    lines = list(judgment_lines(silent, file, question, responses, as_json=False))
    assert lines[0] == "neither response is better: the judge gives no verdict (none); it wrote"
    assert [line.strip() for line in lines[1:]] == list(judgment.texts)


def test_a_judgment_that_was_cut_is_asked_for_its_verdict_once_more(cases):
    image, question, responses, _ = cases[0]
    short = RewardModel("miniworld:judge", max_tokens=3)
    judgment = short.judge(image, question, responses)
    assert (judgment.status, judgment.forced) == ("ok", True)
    assert judgment.winner in (0, 1)
    assert judgment.probability is not None
    assert 1 <= short.score(image, question, responses[0]) <= 5
    left = RewardModel("miniworld:judge", max_tokens=3, force_verdicts=False)
    judgment = left.judge(image, question, responses)
    assert (judgment.status, judgment.forced, judgment.winner) == ("truncated", False, None)
    assert math.isnan(left.score(image, question, responses[0]))


def test_a_judge_that_bolds_its_verdict_judges_as_the_plain_one(judge, cases):
    bold = RewardModel("miniworld:judge", engine="tests.helpers.wordings:BOLD", max_tokens=80)
    images, questions, responses, _ = zip(*cases[:6], strict=True)
    plain = judge.judge_all(images, questions, responses)
    for ours, theirs in zip(bold.judge_all(images, questions, responses), plain, strict=True):
        assert "**Overall Judgment:**" in ours.texts[0]
        assert (ours.winner, ours.evidence, ours.status) == (theirs.winner, theirs.evidence, "ok")
        assert ours.probability == pytest.approx(theirs.probability)


def test_pictures_may_be_files_bytes_or_open(judge, cases, tmp_path):
    image, question, responses, _ = cases[0]
    file = tmp_path / "scene.png"
    file.write_bytes(png(image))
    judgments = [judge.judge(picture, question, responses) for picture in (image, file, str(file), file.read_bytes())]
    assert len({judgment.texts for judgment in judgments}) == 1


def test_a_judge_sees_images_as_large_as_it_was_trained_to_see_them(judge, cases, tmp_path):
    image, question, responses, _ = cases[0]
    bounded = RewardModel(_with_spec(tmp_path / "judge", JudgeSpec(resize_pixels=3000)), max_tokens=80)
    small = bound_pixels(image, 3000)
    assert small.size < image.size
    file = tmp_path / "scene.png"
    file.write_bytes(png(image))
    expected = judge.judge(small, question, responses)
    assert bounded.judge(image, question, responses) == expected
    assert bounded.judge(file, question, responses) == expected
    assert judge.judge(image, question, responses) != expected


def _with_spec(directory, spec):
    shutil.copytree(WEIGHTS / "judge", directory)
    spec.write(directory)
    return directory


def test_mistakes_are_named(judge, cases, tmp_path):
    image, question, responses, _ = cases[0]
    with pytest.raises(UserError, match=r"nothing\.png"):
        judge.judge(tmp_path / "nothing.png", question, responses)
    with pytest.raises(UserError, match="the image"):
        judge.judge(b"no picture", question, responses)
    with pytest.raises(UserError, match="two responses, not 3"):
        judge.judge(image, question, ["a", "b", "c"])
    with pytest.raises(UserError, match=r"RUN/judge"):
        RewardModel(tmp_path / "not" / "there")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    with pytest.raises(UserError):
        judge.judge(buffer.getvalue()[:60], question, responses)


def test_a_closed_judge_has_given_its_engine_back():
    with RewardModel("miniworld:judge", max_tokens=3) as judge:
        engine = weakref.ref(judge.engine)
    gc.collect()
    assert engine() is None
    with pytest.raises(UserError, match="this RewardModel was closed"):
        judge.judge(Image.new("RGB", (56, 56)), "How many?", ("One.", "Two."))
