"""Testimony: the probability that experts give who have read what the judge saw; 1/2 where it says nothing."""

from __future__ import annotations

from carevl.stages.selection.base import JudgedPair, SelectionRule


class Testimony(SelectionRule):
    """The text reward models agree, once they know what the judge sees."""

    name = "testimony"

    def support(self, pair: JudgedPair) -> tuple[float, float]:
        known = pair.trusted is not None and pair.trusted["probability"] is not None
        probability = pair.trusted["probability"] if pair.trusted and known else 0.5
        return probability, 1.0 - probability


RULE = Testimony()
