"""Experts: the probability that they give a verdict; 1/2 where they have none."""

from __future__ import annotations

from carevl.stages.selection.base import JudgedPair, SelectionRule


class Experts(SelectionRule):
    """The text reward models agree."""

    name = "expert"

    def support(self, pair: JudgedPair) -> tuple[float, float]:
        probability = 0.5 if pair.route["probability"] is None else pair.route["probability"]
        return probability, 1.0 - probability


RULE = Experts()
