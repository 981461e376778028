"""The probability of a verdict, read from the log-probabilities of digits where the judge wrote (or would write) it.

Tokenizers write `Answer 1` in two ways: the digit with its space as one token, or each as its own. Both forms are
read; where the first token of ` 1` and ` 2` is the same, it is the bare space and carries nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from carevl.stats.bootstrap import FloatArray

CHOICES = 5
VERDICT_TEXTS: tuple[str, ...] = (*"12345", " 1", " 2", " 3", " 4", " 5")
"""The texts whose log-probabilities a generator has to return."""
Logprobs = Sequence[Sequence[float]]
"""Per generated token, the log-probability (nats) of the first token of each text in `VERDICT_TEXTS`."""

_WRITTEN = re.compile(r"Overall Judgment:[ ]*Answer (\d+)")


def verdict_probabilities(logprobs: Logprobs, text: str) -> FloatArray | None:
    """Return the probabilities of answers 1 and 2 (float64 [2], adding up to 1) at the token of a pairwise verdict.

    A greedy token is surely a digit where one digit is likelier than everything else together. The verdict's is the
    last of those, but for the digits that follow the verdict in the text.

    Returns:
        None when the token cannot be located: no verdict, a tokenizer that joins digits to words, or a digit that was
        written although it was not that likely.
    """
    verdicts = list(_WRITTEN.finditer(text))
    if not verdicts or not len(logprobs):
        return None
    probabilities = _digits(logprobs, 2)
    digits = np.flatnonzero(probabilities.max(axis=1) > 1 - probabilities.sum(axis=1))
    later = sum(text.count(digit, verdicts[-1].end()) for digit in "12")
    if len(digits) <= later:
        return None
    verdict = probabilities[digits[-1 - later]]
    return verdict / verdict.sum() if verdicts[-1].group(1) == str(1 + int(verdict.argmax())) else None


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
