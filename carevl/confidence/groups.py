"""Groups of items that can be told without the truth, and which of them labelled pairs speak for.

A judge that errs in the same way every time agrees with itself, and experts that read what it says agree with it: only
labels show it. They are few, so a group is as narrow as they allow.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from carevl.judging.scripts import UNSPACED

_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
_LONGEST = 2
"""Words of an opening, at most."""
_CHANCE = 0.05
"""A group is below the target where so many wrong pairs would come by a smaller chance if it were not."""

Verdict = Literal["holds", "few_labels", "group_below"]


def find_openings(questions: Iterable[str], least: int) -> Callable[[str], str]:
    """Return what names the opening of a question: its first words, as many as enough questions share; "" where none.

    Args:
        questions: of the labelled pairs, one for each pair.
        least: how many of them share an opening.
    """
    counts = Counter(opening for question in questions for opening in _openings(question))
    shared = {opening for opening, n in counts.items() if n >= least}

    def name(question: str) -> str:
        return " ".join(next((opening for opening in reversed(_openings(question)) if opening in shared), ()))

    return name


def _openings(question: str) -> list[tuple[str, ...]]:
    words = tuple(_WORD.findall(question.casefold()))[:_LONGEST]
    return [words[:n] for n in range(1, len(words) + 1)]


@dataclass(frozen=True)
class Group:
    """What labelled pairs say of a group, those whose labels would be trusted."""

    labelled: int
    wrong: int
    verdict: Verdict


def judge_groups(names: Sequence[str], right: NDArray[np.bool_], precision: float, least: int) -> dict[str, Group]:
    """Return what becomes of every group that trusted labelled pairs belong to; others have no labels at all.

    Args:
        names: of the group of each such pair.
        right: bool [n], whether its winner is that of the label.
        precision: the share that has to be right: a group is below it where the exact binomial tail says so.
        least: pairs that a group needs.
    """
    groups = {}
    for name in sorted(set(names)):
        flags = right[np.array([other == name for other in names])]
        n, wrong = len(flags), int((~flags).sum())
        chance = float(special.bdtrc(wrong - 1, n, 1 - precision)) if wrong else 1.0
        verdict: Verdict = "few_labels" if n < least else "group_below" if chance < _CHANCE else "holds"
        groups[name] = Group(n, wrong, verdict)
    return groups
