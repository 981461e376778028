"""What a language model is asked about responses, and how its replies become scores.

Asked `yes`, a model says of one response whether it is right, and the score is the log-odds of Yes. Asked `pairwise`,
it names the better of two by a letter; the mean over both orders takes position bias out, and least squares over all
pairs turn margins into one score per response. Either is in nats.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

VERSION = 1
"""Of the questions; a changed wording is a new version."""

PAIRWISE = (
    "{turn}\n\n"
    "Two responses to this follow. Which one is better: more correct, and more helpful?\n\n"
    "[Response A]\n{first}\n\n[Response B]\n{second}\n\n"
    "Answer with one letter, A or B, and nothing else."
)
YES = (
    "{turn}\n\n"
    "A response to this follows. Is it right, and is nothing in it wrong?\n\n"
    "[Response]\n{response}\n\n"
    "Answer with one word, Yes or No, and nothing else."
)
LETTERS = (("A",), ("B",))
"""Words of a reply that name the first and the second response."""
WORDS = (("Yes", "yes", "YES"), ("No", "no", "NO"))
"""Words of a reply that say yes and no."""

IMPOSSIBLE = -100.0
"""Log-probability below which differences say nothing; some services write -9999 for it."""


def ask_yes(turn: str, responses: Sequence[str]) -> list[str]:
    """Return a question for every response."""
    return [YES.format(turn=turn, response=response) for response in responses]


def ask_pairwise(turn: str, responses: Sequence[str]) -> list[str]:
    """Return questions for every pair of responses, in the order of `itertools.combinations`, each in both orders."""
    return [
        PAIRWISE.format(turn=turn, first=responses[a], second=responses[b])
        for i, j in itertools.combinations(range(len(responses)), 2)
        for a, b in ((i, j), (j, i))
    ]


def score_pairs(odds: Sequence[float]) -> list[float]:
    """Return the scores of n responses from the log-odds, n (n - 1) of them, that the first shown is the better."""
    n = (1 + math.isqrt(1 + 4 * len(odds))) // 2
    places = itertools.combinations(range(n), 2)
    pairs = zip(odds[::2], odds[1::2], strict=True)
    return least_squares({place: (a - b) / 2 for place, (a, b) in zip(places, pairs, strict=True)}, n)


def least_squares(margins: Mapping[tuple[int, int], float], n: int) -> list[float]:
    """Return the scores with mean 0 whose differences fit the margins of all pairs best.

    A response's score is its mean margin over all n responses.

    Args:
        margins: of every (first, second) with first < second; positive favours first.
    """
    scores = [0.0] * n
    for (i, j), margin in margins.items():
        scores[i] += margin / n
        scores[j] -= margin / n
    return scores


def log_odds(first: Sequence[float], second: Sequence[float]) -> float:
    """Return log(p / q), p and q the sums of the probabilities whose logarithms (nats) are given."""
    return _log_sum(first) - _log_sum(second)


def _log_sum(values: Sequence[float]) -> float:
    raised = [max(value, IMPOSSIBLE) for value in values]
    most = max(raised)
    return most + math.log(sum(math.exp(value - most) for value in raised))
