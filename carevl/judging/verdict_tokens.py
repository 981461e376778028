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
_ALONE = re.compile(r"(?<!\d)[12](?!\d)")
Logprobs = Sequence[Sequence[float]]
"""Per generated token, the log-probability (nats) of the first token of each text in `VERDICT_TEXTS`."""


def verdict_probabilities(logprobs: Logprobs, text: str, span: Span | None) -> FloatArray | None:
    """Return the probabilities of answers 1 and 2 (float64 [2], adding up to 1) at the token of a pairwise verdict.

    A greedy token is surely a digit where one digit is likelier than everything else together. The verdict's is the
    last of those, but for the digits that follow the verdict in the text.

    Args:
        span: where the verdict's number stands in the text; None: there is none.

    Returns:
        None when the token cannot be located: no verdict, one that is not written as a digit, a tokenizer that joins
        digits to words, numbers of several digits after it, or a digit that was written although it was not that
        likely.
    """
    if span is None or text[slice(*span)] not in ("1", "2") or not len(logprobs):
        return None
    later = len(_ALONE.findall(text, span[1]))
    if later != sum(text.count(digit, span[1]) for digit in "12"):
        return None  # tokenizers differ in how many tokens they write such a number with
    probabilities = _digits(logprobs, 2)
    digits = np.flatnonzero(probabilities.max(axis=1) > 1 - probabilities.sum(axis=1))
    if len(digits) <= later:
        return None
    verdict = probabilities[digits[-1 - later]]
    return verdict / verdict.sum() if text[slice(*span)] == str(1 + int(verdict.argmax())) else None


def forced_probabilities(logprobs: Logprobs, choices: int) -> FloatArray | None:
    """Return the probabilities of the numbers 1 to `choices` (float64 [choices], adding up to 1) after a forced prefix.

    They are read at that generated token where digits are likeliest, since a space may come first. None when all are
    impossible.
    """
    if not len(logprobs):
        return None
    probabilities = _digits(logprobs, choices)
    verdict: FloatArray = probabilities[probabilities.sum(axis=1).argmax()]
    return verdict / verdict.sum() if verdict.sum() > 0 else None


def _digits(logprobs: Logprobs, choices: int) -> FloatArray:
    """Return the probability of each number, bare or with its space: float64 [n_tokens, choices]."""
    forms = np.exp(np.asarray(logprobs, np.float64)).reshape(len(logprobs), 2, CHOICES)
    same = np.all(forms == forms[:, :, :1], axis=(0, 2))
    forms[:, same] = 0.0
    probabilities: FloatArray = forms.max(axis=1)[:, :choices]
    return probabilities
