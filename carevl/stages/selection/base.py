"""A rule of selection: how much one consideration says for either verdict of a low-confidence pair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from carevl.settings.stages import Select

Row = Mapping[str, Any]


def sides(route: Row | None) -> tuple[float, float]:
    """Return the probabilities of the two winners of a row of ROUTES; 1/2 each where it has none, or there is none."""
    probability = None if route is None else route["probability"]
    return (0.5, 0.5) if probability is None else (probability, 1.0 - probability)


def keep_highest(judgments: Sequence[Row], values: Sequence[float]) -> list[Row]:
    """Return the judgments that have the highest of their values."""
    top = max(values)
    return [row for row, value in zip(judgments, values, strict=True) if value == top]


@dataclass(frozen=True, eq=False)
class Part:
    """All that is written in the part of a table that a pair lies in."""

    responses: Sequence[str]
    evidence: Sequence[str]


@dataclass(frozen=True)
class JudgedPair:
    """Everything that a rule may look at: two responses of an item and what judges and experts say of them."""

    item: Row
    """Row of ITEMS."""
    route: Row
    """Row of ROUTES; `first` and `second` are the responses."""
    judgments: Sequence[Row]
    """Rows of JUDGMENTS about the pair, in both orders, without errors."""
    answers: Sequence[Row]
    """The same about the bare question, where it was asked."""
    part: Part
    trusted: Row | None = None
    """Row of ROUTES once experts have read testimony; None where nobody testified."""
    rated: Mapping[str, float] = field(default_factory=dict)
    """Evidence to its rating by experts that have read testimony, 0 to 1; nothing where none has."""

    @property
    def texts(self) -> tuple[str, str, str]:
        """Question, first and second response."""
        responses = self.item["responses"]
        return self.item["question"], responses[self.route["first"]], responses[self.route["second"]]


class SelectionRule(ABC):
    """One consideration. A verdict's score is the mean of what the rules say for it, by their weights."""

    name: str
    reads_answers: ClassVar[bool] = False
    """Whether it has nothing to say unless the judge answers the bare question (`sample.answers`)."""

    @property
    def setting(self) -> str:
        """The field of `select` that may hold its weight."""
        return f"{self.name}_weight"

    def weight(self, select: Select) -> float:
        """Return its weight: of a field of its own, or of its name in `select.rules`; at 0 it is not asked."""
        return float(getattr(select, self.setting, 0.0)) + select.rules.get(self.name, 0.0)

    @abstractmethod
    def support(self, pair: JudgedPair) -> tuple[float, float]:
        """Return what it says for the first and for the second response, 0 to 1 each; 1/2 where it says nothing."""

    def prefer(self, pair: JudgedPair, judgments: Sequence[Row]) -> Sequence[Row]:
        """Return those of a verdict's judgments whose evidence it would rather see chosen, at least one; or all."""
        del pair
        return judgments
