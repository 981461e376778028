"""Judges that score every response of a row by itself: verdicts come of the order of scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from carevl.benchmarks.pictures import pictures_of
from carevl.benchmarks.predictions import Prediction, record
from carevl.benchmarks.questions import Question
from carevl.judging.turns import Turn
from carevl.judging.verdicts import Verdict
from carevl.models.engines.base import ImageScorer, ScoringRequest
from carevl.models.row_errors import Failure, not_finite, retry_engine
from carevl.store.schemas import row_error

if TYPE_CHECKING:
    from PIL.Image import Image


def judge_by_scores(
    scorer: ImageScorer,
    name: str,
    questions: Sequence[Question],
    pictures: Mapping[str, Image | str],
    max_images: int,
) -> list[Prediction]:
    """Score the responses of every question, equal ones once, and return a prediction per question.

    Args:
        name: of the judge in the predictions.
        questions: each with the responses to score.
        pictures: image name to the picture, or to why there is none.
        max_images: of a prompt; a question with more is an error.
    """
    requests: dict[_Key, ScoringRequest] = {}
    for question in questions:
        images = pictures_of(question, pictures, max_images)
        if not isinstance(images, str):
            turn = question.turn
            for response in question.responses:
                request = ScoringRequest(images, turn.text, response, turn.places)
                requests.setdefault(_key(question, response), request)
    scores = dict(zip(requests, retry_engine(scorer, scorer.score, [*requests.values()]), strict=True))
    predictions = []
    for question in questions:
        images = pictures_of(question, pictures, max_images)
        found = [scores.get(_key(question, response)) for response in question.responses]
        failure = images if isinstance(images, str) else _failure(found)
        if failure is not None:
            error = row_error("evaluate", "not answered", failure)
            predictions.append(record(question, name, "", Verdict("none", ""), error=error))
        else:
            predictions.append(_record(question, name, [score for score in found if isinstance(score, float)]))
    return predictions


_Key = tuple[tuple[str, ...], Turn, str]
"""Images, what is asked about them, and the response."""


def _key(question: Question, response: str) -> _Key:
    return tuple(image.name for image in question.images), question.turn, response


def _failure(found: Sequence[float | Failure | None]) -> str | None:
    """Return why a question has no scores."""
    for score in found:
        if isinstance(score, Failure):
            return score.message
        if score is None or not math.isfinite(score):
            return not_finite(f"the judge gives {score} for a response").message
    return None


def _record(question: Question, name: str, scores: Sequence[float]) -> Prediction:
    """Return the verdict of scores in the order shown; equal scores of a pair are a tie.

    The probability of a pair is that of Bradley and Terry: the logistic function of the difference.
    """
    if question.task == "pointwise":
        return record(question, name, "", Verdict("ok", "", rating=scores[0]))
    ranked = sorted(range(len(scores)), key=lambda i: -scores[i])
    order = tuple(question.order[i] for i in ranked)
    if question.task == "ranking":
        return record(question, name, "", Verdict("ok", "", ranking=order))
    first = scores[question.order.index(min(question.order))]
    probability = 1 / (1 + math.exp(min(sum(scores) - 2 * first, 700.0)))
    if scores[0] == scores[1]:
        return record(question, name, "", Verdict("none", "", tie=True), probability)
    return record(question, name, "", Verdict("ok", "", winner=order[0]), probability)
