"""An expert that needs no model: which response shares its own words with the caption."""

from __future__ import annotations

from collections.abc import Sequence

from carevl.data.answers import words_of


class Overlap:
    """Counts the words that a response adds to the question and that stand in the caption.

    It abstains (both responses count 0) where a picture of one thing is asked about another one.
    """

    def score(self, conversations: Sequence[tuple[str, str]]) -> list[float]:
        """Return a count for each user turn and response; the last line of a user turn is the question."""
        return [_count(turn, response) for turn, response in conversations]


def _count(turn: str, response: str) -> float:
    *caption, question = turn.splitlines()
    own = set(words_of(response)) - set(words_of(question))
    return float(len(own & set(words_of(" ".join(caption)))))
