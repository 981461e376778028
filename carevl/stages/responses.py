"""The answers to a question, and the item that they make: pure functions of rows, which stage `gather` applies."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from carevl.data.answers import find_fault, same_answer, states, words_of
from carevl.data.intake import item_id, order_responses
from carevl.data.rows import clean
from carevl.judging.markup import split_thinking
from carevl.judging.turns import turns_before
from carevl.stages.respond import IMAGE
from carevl.stats.draws import hash_uniform
from carevl.store.schemas import ALIKE, row_error

if TYPE_CHECKING:
    from carevl.settings.respond import Respond

ANSWER, OWN = "answer", "own"
"""Kinds of writers: a model that was asked, and a function of the settings."""


@dataclass(frozen=True)
class Draw:
    """Who wrote an answer: one row of `writers` without the response."""

    kind: str
    model: str | None
    prompt: str | None
    sample: int | None
    question: str


@dataclass
class Answer:
    """An answer with all draws that gave it."""

    text: str
    words: tuple[str, ...]
    draws: list[Draw] = field(default_factory=list)


@dataclass
class Answered:
    """A question with its answers, those of most draws first."""

    answers: list[Answer] = field(default_factory=list)
    unseen: list[Answer] = field(default_factory=list)
    """What was answered about blurred and blank images, in the order of the kinds."""
    faults: Counter[str] = field(default_factory=Counter)


def read_answers(item: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], respond: Respond) -> Answered:
    """Return a question's answers.

    Args:
        rows: of the table `answers` about this item, in the order of models, prompts and samples.
    """
    answered = Answered()
    ranks = {kind: n for n, kind in enumerate(respond.negatives.kinds)}
    unseen: list[tuple[int, Answer]] = []
    for row in rows:
        if row["error"] is not None:
            answered.faults["failed"] += 1
            continue
        text = clean(split_thinking(row["text"])[1]).strip()
        fault = find_fault(text, item["question"], truncated=row["truncated"])
        if fault is not None:
            answered.faults.update([fault] if row["view"] == IMAGE else [])
            continue
        kind = ANSWER if row["view"] == IMAGE else row["view"]
        draw = Draw(kind, row["model"], row["prompt"], row["sample"], item["item_id"])
        words = words_of(text)
        if row["view"] == IMAGE:
            _add(answered.answers, text, words, draw, respond.min_difference)
        elif row["view"] in ranks:
            unseen.append((ranks[row["view"]], Answer(text, words, [draw])))
    answered.answers.sort(key=lambda answer: -len(answer.draws))
    answered.unseen = [answer for _, answer in sorted(unseen, key=lambda ranked: ranked[0])]
    return answered


def _add(answers: list[Answer], text: str, words: tuple[str, ...], draw: Draw, min_difference: float) -> None:
    for answer in answers:
        if same_answer(answer.words, words, min_difference):
            answer.draws.append(draw)
            return
    answers.append(Answer(text, words, [draw]))


def exchange(answers: Mapping[str, Answer], seed: int) -> dict[str, Answer]:
    """Hand the answers to one question on to other items, so that each gets one that is not its own.

    Each answer is handed on once at most, and those who get one are those who give one: in their texts, what is wrong
    and what most draws gave are the same. An answer that more than half of the items share is handed on by so many of
    them as there are others.

    Args:
        answers: item_id to the answer of most draws.
    """
    of_words: dict[tuple[str, ...], list[str]] = {}
    for name in sorted(answers, key=lambda name: hash_uniform(seed, "exchange", name)):
        of_words.setdefault(answers[name].words, []).append(name)
    groups = sorted(of_words.values(), key=len, reverse=True)
    if len(groups) < 2:
        return {}
    groups[0] = groups[0][: sum(map(len, groups[1:]))]
    names = [name for group in groups for name in group]
    shift = len(groups[0])
    return {name: answers[names[(n + shift) % len(names)]] for n, name in enumerate(names)}


def complete(
    item: dict[str, Any], answered: Answered, other: Answer | None, respond: Respond, rejected: Sequence[str] = ()
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return an item with its responses, or with the error that it has none, and its rows of `writers`.

    Args:
        other: what should be wrong; the answer takes the last place where there is no room.
        rejected: what the user's own function returned.
    """
    if answered.faults and (respond.faulty == "error" or not answered.answers):
        faults = ", ".join(f"{count} {fault}" for fault, count in sorted(answered.faults.items()))
        return _with_error(item, "responses", f"answers that cannot be used: {faults} (respond.faulty)"), []
    answers = answered.answers[: respond.max_responses]
    if other is not None and not _is_given(other.words, answers, respond.min_difference):
        answers = [*answers[: respond.max_responses - 1], other]
    for text in map(clean, rejected):
        words = words_of(text)
        if words and not _is_given(words, answers, respond.min_difference):
            answers = [*answers, Answer(text, words, [Draw(OWN, None, None, None, item["item_id"])])]
    if len(answers) < 2:
        said = f"all answers say {answers[0].text[:80]!r}" if answers else "nobody was asked"
        return _with_error(item, ALIKE, f"{said}: there is nothing to compare; raise temperature or samples"), []
    order = order_responses([answer.text for answer in answers])
    answers = [answers[n] for n in order]
    texts = [answer.text for answer in answers]
    name = item_id(item["images"], item["places"], turns_before(item), item["question"], texts)
    written = [
        {"item_id": name, "response": n, **vars(draw)} for n, answer in enumerate(answers) for draw in answer.draws
    ]
    return item | {"item_id": name, "responses": texts}, written


def _is_given(words: tuple[str, ...], answers: Sequence[Answer], min_difference: float) -> bool:
    return any(same_answer(answer.words, words, min_difference) for answer in answers)


def with_gold(item: dict[str, Any], labelled: set[str]) -> dict[str, Any]:
    """Return an item whose responses are labelled by the reference answers of its labelled sources, if it has any."""
    references = [
        answer for source in item["sources"] if source["source"] in labelled for answer in _references(source)
    ]
    if item["error"] is not None or not references:
        return item
    words = [words_of(response) for response in item["responses"]]
    return item | {"gold": [float(any(states(each, answer) for answer in references)) for each in words]}


def _references(source: Mapping[str, Any]) -> list[str]:
    extra = json.loads(source["extra"] or "{}")
    answers = extra.get("answers", extra.get("answer"))
    return [str(answer) for answer in (answers if isinstance(answers, list) else [answers]) if answer is not None]


def _with_error(item: dict[str, Any], kind: str, message: str) -> dict[str, Any]:
    return item | {"gold": None, "error": row_error("gather", kind, message)}
