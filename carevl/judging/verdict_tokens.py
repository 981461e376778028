"""The probability of a verdict, read from the log-probabilities of digits where the judge wrote (or would write) it.

Tokenizers write `Answer 1` in two ways: the digit with its space as one token, or each as its own. Both forms are
watched; where the first token of ` 1` and ` 2` is the same, it is the bare space and tells nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from carevl.stats.bootstrap import FloatArray

CHOICES = 5
WATCH: tuple[str, ...] = (*"12345", " 1", " 2", " 3", " 4", " 5")
"""What a generator has to watch."""
Watched = Sequence[Sequence[float]]
"""Per generated token, the log-probability (nats) of the first token of each text in `WATCH`."""

_STATED = re.compile(r"Overall Judgment:[ ]*Answer (\d+)")


def stated(watched: Watched, text: str) -> FloatArray | None:
    """Probabilities of answer 1 and answer 2 (float64 [2], adding up to 1) at the token of a pairwise verdict.

    A greedy token is known to be a digit where one digit is likelier than everything else together. The verdict's is
    the last of those, but for the digits that follow the verdict in the text.

    Returns:
        None when the token cannot be told: no verdict, a tokenizer that joins digits to words, or a digit that was
        written although it was not that likely.
    """
    verdicts = list(_STATED.finditer(text))
    if not verdicts or not len(watched):
        return None
    each = _digits(watched, 2)
    written = np.flatnonzero(each.max(axis=1) > 1 - each.sum(axis=1))
    later = sum(text.count(digit, verdicts[-1].end()) for digit in "12")
    if len(written) <= later:
        return None
    found = each[written[-1 - later]]
    return found / found.sum() if verdicts[-1].group(1) == str(1 + int(found.argmax())) else None


def forced(watched: Watched, choices: int) -> FloatArray | None:
    """Probabilities of the numbers from 1 to `choices` (float64 [choices], adding up to 1) right after a forced text.

    They are read at that generated token where digits are likeliest, since a space may come first. None when all are
    impossible.
    """
    if not len(watched):
        return None
    each = _digits(watched, choices)
    found: FloatArray = each[each.sum(axis=1).argmax()]
    return found / found.sum() if found.sum() > 0 else None


def _digits(watched: Watched, choices: int) -> FloatArray:
    """float64 [n_tokens, choices]: the probability of each number, bare or with its space."""
    forms = np.exp(np.asarray(watched, np.float64)).reshape(len(watched), 2, CHOICES)
    same = np.all(forms == forms[:, :, :1], axis=(0, 2))
    forms[:, same] = 0.0
    each: FloatArray = forms.max(axis=1)[:, :choices]
    return each
