"""Judges that answer a benchmark's questions, a model in an engine or an endpoint, and the verdicts in their answers.

Questions that ask the same thing in the same way (`strict` and `official_scorer` often do) are asked once. Every kind
of judge decodes as the official run does: temperature, nucleus, length, and whether images stand before the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from carevl.benchmarks.forcing import CutJudgment, ForcedVerdict, read_forced, verdict_prefix, verdict_tokens
from carevl.benchmarks.pictures import pictures_of
from carevl.benchmarks.predictions import Prediction, record
from carevl.benchmarks.questions import GREEDY, Decoding, Question
from carevl.benchmarks.suite import Suite
from carevl.judging import read_verdict
from carevl.judging.verdict_tokens import VERDICT_TEXTS, mean_rating, verdict_probabilities, verdict_texts
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


class Answerer(Protocol):
    """A judge that can be asked."""

    def answer(
        self, requests: Sequence[GenerationRequest], decoding: Decoding, logprob_texts: Sequence[str]
    ) -> list[Answer]:
        """Return one answer per request, in their order."""

    def force(self, judgments: Sequence[CutJudgment]) -> list[ForcedVerdict | None]:
        """Return the verdict that each judgment is made to end with, in their order; None where it gives none."""


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
            requests,
            max_tokens=decoding.max_tokens or self.max_tokens,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            logprob_texts=logprob_texts,
        )
        return [answer.message if isinstance(answer, Failure) else answer for answer in answers]

    def force(self, judgments: Sequence[CutJudgment]) -> list[ForcedVerdict | None]:
        """Return the verdict with which each reply goes on after its evidence."""
        return go_on(self, judgments)


def go_on(judge: Answerer, judgments: Sequence[CutJudgment]) -> list[ForcedVerdict | None]:
    """Return the verdict with which each reply goes on after its evidence; None where it is none.

    Args:
        judge: goes on with replies that are begun for it.
    """
    forced: dict[int, ForcedVerdict] = {}
    by_length: dict[int, list[int]] = {}
    for number, cut in enumerate(judgments):
        by_length.setdefault(verdict_tokens(cut.task, cut.shown), []).append(number)
    for max_tokens, numbers in by_length.items():
        requests = [judgments[number].begun for number in numbers]
        answers = judge.answer(requests, replace(GREEDY, max_tokens=max_tokens), VERDICT_TEXTS)
        for number, answer in zip(numbers, answers, strict=True):
            cut = judgments[number]
            if isinstance(answer, Generation):
                verdict = read_forced(cut.task, answer, cut.evidence)
                if read_verdict(verdict.text, cut.task, cut.shown).status == "ok":
                    forced[number] = verdict
    return [forced.get(number) for number in range(len(judgments))]


@dataclass(frozen=True)
class _Call:
    """One generation; equal calls are made once."""

    prompt: str
    images: tuple[str, ...]
    places: tuple[int, ...]
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
    *,
    max_images: int,
    force_verdicts: bool = False,
) -> list[Prediction]:
    """Ask a judge, and return a prediction per question.

    Args:
        name: of the judge in the predictions.
        pictures: image name to the picture, or to why there is none.
        seed: of sampled judgments.
        max_images: of a prompt; a question with more is an error.
        force_verdicts: whether a judgment in the judge's own prompt that was cut before its verdict is made to end with
            one.
    """
    calls = [_call(suite, question, seed) for question in questions]
    wording = next((question.wording for question in questions if question.wording is not None), None)
    answers: dict[_Call, Answer] = {}
    requested: dict[_Call, GenerationRequest] = {}
    for call, question in dict(zip(calls, questions, strict=True)).items():
        images = pictures_of(question, pictures, max_images)
        if isinstance(images, str):
            answers[call] = images
        else:
            requested[call] = GenerationRequest(images, call.prompt, call.response_prefix, call.seed, call.places)
    batches: dict[Decoding, dict[_Call, GenerationRequest]] = {}
    for call, request in requested.items():
        batches.setdefault(call.decoding, {})[call] = request
    # What a judge may refuse to do at all comes first, before anything is paid.
    for decoding, requests in sorted(batches.items(), key=lambda batch: not any(c.response_prefix for c in batch[1])):
        logprob_texts = () if decoding.temperature else verdict_texts(wording)
        answers |= zip(requests, judge.answer([*requests.values()], decoding, logprob_texts), strict=True)
    cut = _find_cut(suite, zip(questions, calls, strict=True), answers, requested, force_verdicts)
    forced = dict(zip(cut, judge.force([*cut.values()]), strict=True)) if cut else {}
    return [_read(suite, name, q, answers[call], forced.get(call)) for q, call in zip(questions, calls, strict=True)]


def _find_cut(
    suite: Suite,
    asked: Iterable[tuple[Question, _Call]],
    answers: Mapping[_Call, Answer],
    requested: Mapping[_Call, GenerationRequest],
    force_verdicts: bool,
) -> dict[_Call, CutJudgment]:
    """Return the judgments in the judge's own prompts whose verdict is asked for after their evidence.

    They are those that were cut before it, if verdicts are forced; and under `pointwise` all that have a rating or were
    cut, for the probabilities of their ratings.
    """
    statuses: dict[str, tuple[str, ...]] = {"pointwise": ("ok", "truncated")}
    if force_verdicts:
        statuses |= {"official_scorer": ("truncated",), "strict": ("truncated",)}
    cut: dict[_Call, CutJudgment] = {}
    for question, call in asked:
        answer = answers[call]
        if isinstance(answer, Generation) and question.protocol in statuses:
            verdict = suite.parse(question, answer.text, truncated=answer.truncated)
            if verdict.status in statuses[question.protocol]:
                shown = len(question.order)
                cut[call] = CutJudgment(requested[call], answer.text, verdict.evidence, question.task, shown)
    return cut


def _call(suite: Suite, question: Question, seed: int) -> _Call:
    response_prefix, decoding = "", suite.decoding if question.protocol == "official" else GREEDY
    names, places = tuple(image.name for image in question.images), question.turn.places
    if not decoding.image_first and not any(places):
        places = (len(question.prompt),) * len(places)
    if question.protocol == "verdict_prob":
        response_prefix = verdict_prefix(question.task)
        decoding = replace(decoding, max_tokens=verdict_tokens(question.task, len(question.order)))
    draw = rng_for(seed, question.key, question.order, question.sample).getrandbits(32) if decoding.temperature else 0
    return _Call(question.prompt, names, places, response_prefix, draw, decoding)


def _read(
    suite: Suite, name: str, question: Question, answer: Answer, forced: ForcedVerdict | None = None
) -> Prediction:
    """Return the prediction in an answer, with the verdict that it was made to end with, if it was.

    A request that failed counts as no verdict.
    """
    if isinstance(answer, str):
        error = row_error("evaluate", "not answered", answer)
        return record(question, name, "", suite.parse(question, ""), error=error)
    if question.protocol == "pointwise":
        return _read_rating(suite, name, question, answer, forced)
    text, truncated, probabilities = answer.text, answer.truncated, None
    begun = read_forced(question.task, answer) if question.protocol == "verdict_prob" else forced
    if begun is not None:
        text, truncated, probabilities = begun.text, False, begun.probabilities
    elif question.task == "pairwise" and question.protocol != "official":
        span = read_verdict(text, question.task, len(question.order), truncated, question.wording).span
        probabilities = verdict_probabilities(answer.logprobs, text, span)
    probability = None
    if probabilities is not None and question.task == "pairwise":
        probability = float(probabilities[question.order.index(min(question.order))])
    verdict = suite.parse(question, text, truncated=truncated)
    row = record(question, name, text, verdict, probability, reasoning=answer.reasoning)
    return replace(row, forced=forced is not None)


def _read_rating(
    suite: Suite, name: str, question: Question, answer: Generation, forced: ForcedVerdict | None
) -> Prediction:
    """Return the prediction of a rating: its mean, as `RewardModel.score`, where the probabilities are known."""
    text, was_cut = answer.text, False
    verdict = suite.parse(question, text, truncated=answer.truncated)
    if forced is not None:
        was_cut = verdict.status == "truncated"
        if was_cut:
            text, verdict = forced.text, suite.parse(question, forced.text)
        if forced.probabilities is not None:
            verdict = replace(verdict, rating=mean_rating(forced.probabilities))
    return replace(record(question, name, text, verdict, reasoning=answer.reasoning), forced=was_cut)
