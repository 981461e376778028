"""Testimony: the probability that experts give who have read what the judge saw; 1/2 where it says nothing."""

from __future__ import annotations

from collections.abc import Sequence

from carevl.stages.selection.base import JudgedPair, Row, SelectionRule, keep_highest, sides


class Testimony(SelectionRule):
    """The text reward models agree, once they know what the judge sees."""

    name = "testimony"

    def support(self, pair: JudgedPair) -> tuple[float, float]:
        return sides(pair.trusted)

    def prefer(self, pair: JudgedPair, judgments: Sequence[Row]) -> Sequence[Row]:
        """Return those whose evidence the experts rate best."""
        return keep_highest(judgments, [pair.rated.get(row["evidence"], -1.0) for row in judgments])


RULE = Testimony()
