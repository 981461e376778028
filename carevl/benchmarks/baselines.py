"""Trivial judges: they read no image, need no model, and answer every question of every protocol.

They stand beside a judge's figures. `longer` shows what length alone earns, `first` what position earns, `random` what
chance earns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from carevl.benchmarks.predictions import Prediction, record, record_score
from carevl.benchmarks.questions import Question
from carevl.benchmarks.rows import Row
from carevl.benchmarks.suite import Suite
from carevl.judging.verdicts import Verdict
from carevl.stats.draws import rng_for

_RATING_STEP = 50
"""Characters of a response that `longer` rates 1; every doubling earns another point, up to 5."""


def judge_trivially(
    name: str, suite: Suite, rows: Iterable[Row], questions: Iterable[Question], *, seed: int = 0
) -> Iterator[Prediction]:
    """Yield the predictions of the trivial judge `longer`, `first` or `random`, one per question.

    `longer` counts characters; of two equally long responses it names none (a tie where the prompt has one, else no
    verdict). `first` prefers the order shown and rates everything 3. As a reward model, `longer` scores with the
    number of characters, `first` with 0, `random` uniformly.

    Raises:
        ValueError: there is no such trivial judge.
    """
    if name not in TRIVIAL_JUDGES:
        raise ValueError(f"no trivial judge {name!r}; there are {', '.join(TRIVIAL_JUDGES)}")
    of_key = {row.key: row for row in rows}
    read: dict[tuple[object, ...], Verdict] = {}  # its few texts are read once each
    for question in questions:
        responses = of_key[question.key].responses
        if question.response is not None:
            yield record_score(question, name, _SCORES[name](question, seed))
        else:
            text = suite.write_verdict(question, TRIVIAL_JUDGES[name](question, responses, seed))
            kind = (text, question.protocol, question.task, question.order)
            if kind not in read:
                read[kind] = suite.parse(question, text)
            yield record(question, name, text, read[kind])


def _longer(question: Question, responses: tuple[str, ...], _: int) -> Verdict:
    shown = sorted(question.order, key=lambda i: (-len(responses[i]), i))
    if question.task == "ranking":
        return Verdict("ok", "", ranking=tuple(shown))
    if question.task == "pointwise":
        return Verdict("ok", "", rating=min(5, 1 + (len(responses[shown[0]]) // _RATING_STEP).bit_length()))
    tie = len(responses[shown[0]]) == len(responses[shown[1]])
    return Verdict("ok", "", winner=-1 if tie else shown[0])


def _first(question: Question, _: tuple[str, ...], __: int) -> Verdict:
    return _in_order(question, question.order, rating=3)


def _random(question: Question, _: tuple[str, ...], seed: int) -> Verdict:
    rng = rng_for(seed, question.key, question.order, question.sample)
    return _in_order(question, tuple(rng.sample(question.order, len(question.order))), rating=rng.randint(1, 5))


def _in_order(question: Question, preferred: tuple[int, ...], rating: int) -> Verdict:
    if question.task == "ranking":
        return Verdict("ok", "", ranking=preferred)
    if question.task == "pointwise":
        return Verdict("ok", "", rating=rating)
    return Verdict("ok", "", winner=preferred[0])


TRIVIAL_JUDGES: dict[str, Callable[[Question, tuple[str, ...], int], Verdict]] = {
    "longer": _longer,
    "first": _first,
    "random": _random,
}
_SCORES: dict[str, Callable[[Question, int], float]] = {
    "longer": lambda question, _: float(len(question.response or "")),
    "first": lambda _, __: 0.0,
    "random": lambda question, seed: rng_for(seed, question.key, question.order, question.sample).random(),
}
