"""What a kind of expert is, and how conversations become rows for experts that score them one by one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from carevl.errors import SettingsError
from carevl.judging.turns import Turn
from carevl.models.conversations import Conversation, Dialogue, Encoded
from carevl.models.row_errors import Failure, SomeRowsError, retry_engine

if TYPE_CHECKING:
    from PIL.Image import Image

    from carevl.settings.models import Expert

In = TypeVar("In")
TextRow = tuple[Dialogue, Sequence[str], Dialogue]
"""What is asked, the responses to it, and the same without captions."""
Row = tuple[Dialogue, Sequence[str | Encoded], Dialogue]
"""The same; an encoded response stands for the whole conversation."""
ImageRow = tuple[tuple[Turn, ...], Sequence[str], tuple["Image", ...]]
"""Turns, the responses to them, and the images that stand in them, for kinds that see these."""
RowScorer = Callable[[Sequence[Row]], list[list[float] | Failure]]
"""Gives one score per response of every row, or why a row has none."""
RowEncoder = Callable[[Sequence[TextRow]], list[list[Encoded]]]
"""Gives the tokens of every response of every row."""


class ExpertKind(ABC):
    """A kind of expert: how one of its settings becomes scores. Heavy imports stay inside its methods."""

    name: str
    sees_images: ClassVar[bool] = False
    """Whether its rows have the item's image."""

    @abstractmethod
    def load(self, expert: Expert) -> RowScorer:
        """Load an expert; return what scores rows.

        Raises:
            UserError: the expert cannot be loaded, or its engine and its reference disagree.
        """

    @abstractmethod
    def fingerprint(self, expert: Expert) -> str:
        """Return what identifies what an expert computes, apart from its settings."""

    def loads_weights(self, expert: Expert) -> bool:
        """Return whether `path` names a model by directory or hub id; a run brings those of the hub in beforehand."""
        del expert
        return False

    def encoder(self, expert: Expert) -> RowEncoder | None:
        """Return what encodes rows as the expert's engine does; None where the expert reads texts."""
        del expert
        return None

    def describe(self, expert: Expert) -> str | None:
        """Return a few words on what gives its scores; None where nothing on this machine tells."""
        del expert
        return None

    def check(self, expert: Expert) -> None:
        """Refuse settings that cannot work, before anything is loaded: cheap, and without a network.

        Raises:
            UserError: the expert's settings lack what this kind needs, or have what it does not use.
        """
        if expert.endpoint is not None:
            raise SettingsError(f"expert {expert.name}: settings under endpoint, but its kind is {expert.kind}")
        if expert.scoring is not None:
            raise SettingsError(f"expert {expert.name}: scoring is for kind llm or vlm, but its kind is {expert.kind}")


def score_by_row(engine: Any) -> RowScorer:
    """Return what scores rows by an engine's `score(conversations)`; a row fails alone.

    An engine that has `reduce_batch_size` is asked for it when memory runs out.
    """

    def score_rows(rows: Sequence[Row]) -> list[list[float]]:
        return by_row(engine.score, [_conversations(row) for row in rows])

    return lambda rows: retry_engine(engine, score_rows, rows)


def _conversations(row: Row) -> list[Conversation | Encoded]:
    asked, responses, *_ = row
    return [response if isinstance(response, Encoded) else (asked, response) for response in responses]


def by_row(score: Callable[[list[In]], Sequence[float]], rows: Sequence[Sequence[In]]) -> list[list[float]]:
    """Score everything that rows ask, one after the other; a row fails with the first of its own.

    Raises:
        ValueError: the engine gave another number of scores than it was asked for.
        SomeRowsError: some rows failed.
    """
    asked = [each for row in rows for each in row]
    failures: dict[int, Failure] = {}
    try:
        scores: Sequence[float | None] = score(asked)
    except SomeRowsError as partial:
        scores, failures = partial.results, dict(partial.failures)
    if len(scores) != len(asked):
        raise ValueError(f"the expert gave {len(scores)} scores for {len(asked)} conversations")
    results: list[list[Any]] = []
    failed: dict[int, Failure] = {}
    start = 0
    for number, row in enumerate(rows):
        places = range(start, start := start + len(row))
        results.append([scores[i] for i in places])
        if failure := next((failures[i] for i in places if i in failures), None):
            failed[number] = failure
    if failed:
        raise SomeRowsError(results, failed)
    return results
