"""Testimony: the probability that experts give who have read what the judge saw; 1/2 where it says nothing."""

from __future__ import annotations

from carevl.stages.selection.base import JudgedPair, SelectionRule, sides


class Testimony(SelectionRule):
    """The text reward models agree, once they know what the judge sees."""

    name = "testimony"

    def support(self, pair: JudgedPair) -> tuple[float, float]:
        return sides(pair.trusted)


RULE = Testimony()
