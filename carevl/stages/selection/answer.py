"""Answer: the same with the judge's own answer to the bare question, which no response has led on."""

from __future__ import annotations

from carevl.stages.selection.base import JudgedPair, SelectionRule
from carevl.stages.selection.evidence import speak


class Answer(SelectionRule):
    """The judge's answer to the bare question speaks for the verdict."""

    name = "answer"

    def support(self, pair: JudgedPair) -> tuple[float, float]:
        return speak(pair, pair.answers)


RULE = Answer()
