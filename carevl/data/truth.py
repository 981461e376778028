"""The exact truth of a drawn world, for reports only: nothing that is trained or routed reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from carevl.data.answers import words_of
from carevl.errors import reading


@dataclass(frozen=True)
class Truth:
    """The truth of an item."""

    kind: str
    decidable: bool
    """Whether a caption without positions and sizes tells right from wrong."""
    ratings: Mapping[str, int]
    """Text of a response that was drawn to its rating, 5 when it is right."""
    statements: frozenset[tuple[str, ...]] = frozenset()
    """Words of the true answers: the bare answer, and the sentence that proves it."""

    def rating(self, text: str) -> int:
        """Return the rating of a response; of one that was not drawn, 5 where it states the truth and 1 elsewhere."""
        rating = self.ratings.get(text)
        return rating if rating is not None else 5 if words_of(text) in self.statements else 1


def read_truth(world: Path) -> dict[tuple[str, str], Truth]:
    """Read the truth of every item of a drawn world, by image_id and question; nothing where there is none."""
    truths = {}
    for file in sorted((world / "truth").glob("*.parquet")):
        columns = ["image_sha256", "question", "kind", "decidable", "answer", "evidence", "responses"]
        with reading(file):
            rows = pq.read_table(file, columns=columns).to_pylist()
        for row in rows:
            ratings = {response["text"]: response["rating"] for response in row["responses"]}
            statements = frozenset((words_of(row["answer"]), words_of(row["evidence"])))
            truths[row["image_sha256"], row["question"]] = Truth(row["kind"], row["decidable"], ratings, statements)
    return truths


def truth_of(truths: Mapping[tuple[str, str], Truth], item: Mapping[str, Any]) -> Truth | None:
    """Return the truth of a row of the table `items`, of which `images` and `question` are read; None: unknown."""
    return truths.get((item["images"][0], item["question"])) if len(item["images"]) == 1 else None


Outcome = Literal["right", "wrong", "tie"]
"""What a label is that names a winner; a tie is of two responses that are equally good, and so a wrong label, too."""


def label_outcome(
    truths: Mapping[tuple[str, str], Truth], item: Mapping[str, Any], winner: int, loser: int
) -> Outcome | None:
    """Return what the label is that prefers one response of an item to another; None: unknown."""
    truth = truth_of(truths, item)
    if truth is None:
        return None
    better, worse = (truth.rating(item["responses"][i]) for i in (winner, loser))
    return "tie" if better == worse else "right" if better > worse else "wrong"
