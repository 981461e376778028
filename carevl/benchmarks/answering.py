"""Judges that answer a benchmark's questions, a model in an engine or an endpoint, and the verdicts in their answers.

Questions that ask the same thing in the same way (`strict` and `official_scorer` often do) are asked once. Every kind
of judge decodes as the official run does: temperature, nucleus, length, and whether the image stands before the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from carevl.benchmarks.predictions import Prediction, record
from carevl.benchmarks.questions import GREEDY, Decoding, Question
from carevl.benchmarks.suite import Suite
from carevl.judging import read_verdict
from carevl.judging.prompts import VERDICT_PREFIX, Task, write_judgment
from carevl.judging.verdict_tokens import CHOICES, forced_probabilities, verdict_probabilities, verdict_texts
from carevl.models.engines import generate_with_row_errors, generator
from carevl.models.engines.base import Generation, GenerationRequest
from carevl.models.row_errors import Failure
from carevl.settings.requests import is_endpoint
from carevl.stats.draws import rng_for
from carevl.store.schemas import row_error

if TYPE_CHECKING:
    from PIL.Image import Image

    from carevl.settings.models import Judge

Answer = Generation | str
"""A judge's text, or the reason why it could not be asked."""

_FORCED_TOKENS = 2
_TOKENS_PER_RANK = 6


class Answerer(Protocol):
    """A judge that can be asked."""

    def answer(
        self, requests: Sequence[GenerationRequest], decoding: Decoding, logprob_texts: Sequence[str]
    ) -> list[Answer]:
        """Return one answer per request, in their order."""


def load_judge(judge: Judge) -> Answerer:
    """Return the judge that the settings name."""
    if is_endpoint(judge.path):
        from carevl.benchmarks.endpoint import Endpoint

        return Endpoint(judge)
    return EngineJudge(judge)


class EngineJudge:
    """A model in this process."""

    def __init__(self, judge: Judge) -> None:
        self.engine, self.max_tokens = generator(judge), judge.max_tokens

    def answer(
        self, requests: Sequence[GenerationRequest], decoding: Decoding, logprob_texts: Sequence[str]
    ) -> list[Answer]:
        """Return one answer per request; one that the model refuses (over its length, an odd image) fails alone."""
        answers = generate_with_row_errors(
            self.engine,
            [replace(request, image_first=decoding.image_first) for request in requests],
            max_tokens=decoding.max_tokens or self.max_tokens,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            logprob_texts=logprob_texts,
        )
        return [answer.message if isinstance(answer, Failure) else answer for answer in answers]


@dataclass(frozen=True)
class _Call:
    """One generation; equal calls are made once."""

    prompt: str
    image: str
    response_prefix: str
    seed: int
    decoding: Decoding


def judge_questions(
    judge: Answerer,
    name: str,
    suite: Suite,
    questions: Sequence[Question],
    pictures: Mapping[str, Image | str],
    seed: int,
) -> list[Prediction]:
    """Ask a judge, and return a prediction per question.

    Args:
        name: of the judge in the predictions.
        questions: each with an image.
        pictures: image name to the picture, or to why there is none.
        seed: of sampled judgments.
    """
    calls = [_call(suite, question, seed) for question in questions]
    wording = next((question.wording for question in questions if question.wording is not None), None)
    answers: dict[_Call, Answer] = {}
    batches: dict[Decoding, dict[_Call, GenerationRequest]] = {}
    for call in dict.fromkeys(calls):
        picture = pictures[call.image]
        if isinstance(picture, str):
            answers[call] = picture
        else:
            batches.setdefault(call.decoding, {})[call] = GenerationRequest(
                picture, call.prompt, call.response_prefix, call.seed
            )
    # What a judge may refuse to do at all comes first, before anything is paid.
    for decoding, requests in sorted(batches.items(), key=lambda batch: not any(c.response_prefix for c in batch[1])):
        logprob_texts = () if decoding.temperature else verdict_texts(wording)
        answers |= zip(requests, judge.answer([*requests.values()], decoding, logprob_texts), strict=True)
    return [_read(suite, name, q, answers[call]) for q, call in zip(questions, calls, strict=True)]


def _call(suite: Suite, question: Question, seed: int) -> _Call:
    assert question.image is not None
    response_prefix, decoding = "", suite.decoding if question.protocol == "official" else GREEDY
    if question.protocol == "verdict_prob":
        response_prefix = VERDICT_PREFIX[question.task]
        tokens = _TOKENS_PER_RANK * len(question.order) if question.task == "ranking" else _FORCED_TOKENS
        decoding = replace(decoding, max_tokens=tokens)
    draw = rng_for(seed, question.key, question.order, question.sample).getrandbits(32) if decoding.temperature else 0
    return _Call(question.prompt, question.image.name, response_prefix, draw, decoding)


def _read(suite: Suite, name: str, question: Question, answer: Answer) -> Prediction:
    """Return the prediction in an answer; a request that failed counts as no verdict."""
    if isinstance(answer, str):
        error = row_error("evaluate", "not answered", answer)
        return record(question, name, "", suite.parse(question, ""), error=error)
    text, truncated, probabilities = answer.text, answer.truncated, None
    if question.protocol == "verdict_prob":
        text, truncated = VERDICT_PREFIX[question.task] + text, False
        if question.task != "ranking":
            probabilities = forced_probabilities(answer.logprobs, 2 if question.task == "pairwise" else CHOICES)
            text = text if probabilities is None else _verdict(question.task, 1 + int(probabilities.argmax()))
    elif question.task == "pairwise" and question.protocol != "official":
        span = read_verdict(text, question.task, len(question.order), truncated, question.wording).span
        probabilities = verdict_probabilities(answer.logprobs, text, span)
    probability = None
    if probabilities is not None and question.task == "pairwise":
        probability = float(probabilities[question.order.index(min(question.order))])
    verdict = suite.parse(question, text, truncated=truncated)
    return record(question, name, text, verdict, probability, reasoning=answer.reasoning)


def _verdict(task: Task, number: int) -> str:
    return write_judgment("", winner=number) if task == "pairwise" else write_judgment("", rating=number)
