"""Evidence: whose words stand in the evidence that the judge gives most often.

A judge can see well and compare badly.
"""

from __future__ import annotations

from collections.abc import Sequence

from carevl.stages.selection.base import JudgedPair, SelectionRule
from carevl.stages.selection.witness import Row


class Evidence(SelectionRule):
    """The judge's own evidence speaks for the verdict."""

    name = "evidence"

    def support(self, pair: JudgedPair) -> tuple[float, float]:
        return speak(pair, pair.judgments)


def speak(pair: JudgedPair, rows: Sequence[Row]) -> tuple[float, float]:
    """Return what the evidence that most rows give says for each response."""
    lean = pair.part.witness.lean(*pair.texts, rows)
    return 0.5 + 0.5 * lean, 0.5 - 0.5 * lean


RULE = Evidence()
