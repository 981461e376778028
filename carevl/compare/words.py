"""Rules of selection by words: how much of a response's own words stands in what the judge has seen.

A judge can see well and compare badly. But words tell only where everybody speaks the same few English ones, as in
miniworld: no stage knows these rules, and settings name them by their import path.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from carevl.stages.select import NAMES_ANSWERS
from carevl.stages.selection import JudgedPair, SelectionRule
from carevl.stages.selection.base import Part, Row, keep_highest

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_STYLE = 100
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a an the this that these those it its they them their he she his her i me my we our you your
        is are was were be been am has have had do does did can could will would of to in on at by for from with and or
        but as if so than then there here what which who when where how""",
    )
)


class EvidenceWords(SelectionRule):
    """The judge's own evidence speaks for the verdict."""

    name = "evidence words"

    def support(self, pair: JudgedPair) -> tuple[float, float]:
        return _speak(pair, pair.judgments)


class AnswerWords(SelectionRule):
    """The judge's answer to the bare question does, which no response has led on; and for evidence that is like it."""

    name = "answer words"
    reads_answers = True

    def support(self, pair: JudgedPair) -> tuple[float, float]:
        return _speak(pair, pair.answers)

    def prefer(self, pair: JudgedPair, judgments: Sequence[Row]) -> Sequence[Row]:
        """Return those whose evidence shares most content words with the answer (Jaccard's index)."""
        words = content_words(most_given(pair.answers)[0])
        if not words:
            return judgments
        evidence = [content_words(row["evidence"]) for row in judgments]
        return keep_highest(judgments, [len(words & seen) / len(words | seen) for seen in evidence])


def _speak(pair: JudgedPair, rows: Sequence[Row]) -> tuple[float, float]:
    """Return what the evidence that most rows give says for each response."""
    lean = _witness(pair.part).lean(*pair.texts, rows)
    return 0.5 + 0.5 * lean, 0.5 - 0.5 * lean


class Witness:
    """What evidence says for a response: of the words that speak, how many of its own stand there.

    Words of the question do not speak, as any response may repeat them; nor do function words of English, nor those of
    style, which responses have more than `_STYLE` times as often as evidence has.
    """

    def __init__(self, responses: Iterable[str], evidence: Iterable[str]) -> None:
        in_responses, in_evidence = _shares(responses), _shares(evidence)
        self.speaking = {word for word, share in in_evidence.items() if share * _STYLE >= in_responses.get(word, 0.0)}

    def lean(self, question: str, first: str, second: str, judgments: Sequence[Row]) -> float:
        """Return how much more the evidence given most often says for the first response than for the second, -1 to 1.

        s_1 - s_2, times the share of the judgments (or answers) that give this evidence; s is the share of a response's
        own words, those that the other one has not, that stand in it, and 1/2 where there are none.
        """
        evidence, n = most_given(judgments)
        of_question, a, b, seen = (content_words(text) for text in (question, first, second, evidence))
        own = ((words - of_question) & self.speaking for words in (a - b, b - a))
        s_1, s_2 = (len(words & seen) / len(words) if words else 0.5 for words in own)
        return (s_1 - s_2) * n / len(judgments) if n else 0.0


@lru_cache(maxsize=1)
def _witness(part: Part) -> Witness:
    return Witness(part.responses, part.evidence)


def most_given(judgments: Sequence[Row]) -> tuple[str, int]:
    """Return the evidence that most judgments give, and how many; "" and 0 where there is none."""
    counts = Counter(row["evidence"] for row in judgments if row["evidence"])
    return counts.most_common(1)[0] if counts else ("", 0)


def _shares(texts: Iterable[str]) -> dict[str, float]:
    """Return the share of texts that have a content word."""
    counts, n = Counter[str](), 0
    for text in texts:
        counts.update(content_words(text))
        n += 1
    return {word: count / n for word, count in counts.items()}


def content_words(text: str) -> set[str]:
    """Return the words of a text but for function words and names of answers; numbers up to ten are written out."""
    words = re.findall(r"[^\W_]+", NAMES_ANSWERS.sub("", text).lower())
    spelt = (_NUMBERS[int(word)] if word.isdecimal() and int(word) < len(_NUMBERS) else word for word in words)
    return {word for word in spelt if word not in _FUNCTION_WORDS}
