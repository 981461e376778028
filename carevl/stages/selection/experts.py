"""Experts: the probability that they give a verdict; 1/2 where they have none."""

from __future__ import annotations

from carevl.stages.selection.base import JudgedPair, SelectionRule, sides


class Experts(SelectionRule):
    """The text reward models agree."""

    name = "expert"

    def support(self, pair: JudgedPair) -> tuple[float, float]:
        return sides(pair.route)


RULE = Experts()
