"""Self-consistency: the share of the pair's judgments, in both orders, that agree with a verdict."""

from __future__ import annotations

from carevl.stages.selection.base import JudgedPair, SelectionRule


class Consistency(SelectionRule):
    """The judge agrees with itself."""

    name = "consistency"

    def support(self, pair: JudgedPair) -> tuple[float, float]:
        n = max(1, len(pair.judgments))
        first, second = (
            sum(row["winner"] == pair.route[which] for row in pair.judgments) / n for which in ("first", "second")
        )
        return first, second


RULE = Consistency()
