"""The probability of a verdict, read from the log-probabilities of digits where the judge wrote (or would write) it.

Where it wrote it is the place that `read_verdict` found.

Tokenizers write `Answer 1` in two ways: the digit with its space as one token, or each as its own. Both forms are
read; where the first token of ` 1` and ` 2` is the same, it is the bare space and carries nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from carevl.judging.mapped_text import Span
from carevl.stats.bootstrap import FloatArray

CHOICES = 5
VERDICT_TEXTS: tuple[str, ...] = (*"12345", " 1", " 2", " 3", " 4", " 5")
"""The texts whose log-probabilities a generator has to return."""
_LETTERS = (*"ABCDE", " A", " B", " C", " D", " E")
_ALONE = {"12": re.compile(r"(?<!\d)[12](?!\d)"), "AB": re.compile(r"(?<![^\W_])[AB](?![^\W_])")}
"""Of either way to name two responses, where one of the names stands by itself."""
Logprobs = Sequence[Sequence[float]]
"""Per generated token, the log-probability (nats) of the first token of each text in `verdict_texts`."""


def verdict_texts(wording: str | None) -> tuple[str, ...]:
    """Return the texts whose log-probabilities a generator has to return: letters too for a wording of the judge's."""
    return VERDICT_TEXTS if wording is None else VERDICT_TEXTS + _LETTERS


def verdict_probabilities(logprobs: Logprobs, text: str, span: Span | None) -> FloatArray | None:
    """Return the probabilities of answers 1 and 2 (float64 [2], adding up to 1) at the token of a pairwise verdict.

    A greedy token is surely a digit where one digit is likelier than everything else together. The verdict's is the
    last of those, but for the digits that follow the verdict in the text. The same holds of letters.

    Args:
        span: where the verdict's number or letter stands in the text; None: there is none.

    Returns:
        None when the token cannot be located: no verdict, one that is not written as a digit or a capital letter, a
        tokenizer that joins those to words, numbers of several digits or words with such letters after it, or a digit
        that was written although it was not that likely.
    """
    written = "" if span is None else text[slice(*span)]
    names = next((names for names in _ALONE if written and written in tuple(names)), None)
    if span is None or names is None or not len(logprobs):
        return None
    later = len(_ALONE[names].findall(text, span[1]))
    if later != sum(text.count(name, span[1]) for name in names):
        return None  # tokenizers differ in how many tokens they write such a number with
    begin = 0 if names == "12" else len(VERDICT_TEXTS)
    columns = [row[begin : begin + len(VERDICT_TEXTS)] for row in logprobs]
    if len(columns[0]) != len(VERDICT_TEXTS):
        return None
    probabilities = _choices(columns, 2)
    sure = np.flatnonzero(probabilities.max(axis=1) > 1 - probabilities.sum(axis=1))
    if len(sure) <= later:
        return None
    verdict = probabilities[sure[-1 - later]]
    return verdict / verdict.sum() if written == names[int(verdict.argmax())] else None


def forced_probabilities(logprobs: Logprobs, choices: int) -> FloatArray | None:
    """Return the probabilities of the numbers 1 to `choices` (float64 [choices], adding up to 1) after a forced prefix.

    They are read at that generated token where digits are likeliest, since a space may come first. None when all are
    impossible.
    """
    if not len(logprobs):
        return None
    probabilities = _choices([row[: len(VERDICT_TEXTS)] for row in logprobs], choices)
    verdict: FloatArray = probabilities[probabilities.sum(axis=1).argmax()]
    return verdict / verdict.sum() if verdict.sum() > 0 else None


def mean_rating(probabilities: FloatArray) -> float:
    """Return the mean of the ratings from 1 under their probabilities (float64 [n])."""
    return float(probabilities @ np.arange(1, len(probabilities) + 1))


def _choices(logprobs: Logprobs, choices: int) -> FloatArray:
    """Return the probability of each number or letter, bare or with its space: float64 [n_tokens, choices]."""
    forms = np.exp(np.asarray(logprobs, np.float64)).reshape(len(logprobs), 2, CHOICES)
    same = np.all(forms == forms[:, :, :1], axis=(0, 2))
    forms[:, same] = 0.0
    probabilities: FloatArray = forms.max(axis=1)[:, :choices]
    return probabilities
