"""`Suite`: a benchmark of judges. The registered ones are in `suites/`; a user's own is named by its import path."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from carevl.benchmarks.layouts import Layout
from carevl.benchmarks.predictions import Prediction
from carevl.benchmarks.questions import GREEDY, Decoding, Question
from carevl.benchmarks.rows import Row
from carevl.errors import UserError
from carevl.judging.prompts import write_judgment
from carevl.judging.verdicts import Verdict, read_verdict
from carevl.settings.data import ProtocolName
from carevl.stats.bootstrap import Scored


class Suite(ABC):
    """A benchmark: how its rows are read, what is asked about them, and what the answers are worth.

    A subclass sets `name` and `summary` and defines `load`, `questions` and `score`; the rest has defaults. It keeps no
    state: every actor makes an instance of its own.
    """

    name: ClassVar[str]
    """Its name in predictions and results, and in settings where it is registered."""
    summary: ClassVar[str]
    """One line for help texts."""
    draws: ClassVar[int] = 1
    """Judgments per row under `official` and `official_scorer`, unless the settings give a number."""
    decoding: ClassVar[Decoding] = GREEDY
    """How the official run generates."""
    default_protocols: ClassVar[tuple[ProtocolName, ...]] = ("official_scorer", "strict")
    """How `carevl evaluate` asks without `--protocol`."""
    is_rated: ClassVar[bool] = True
    """Whether the protocol `pointwise`, which rates responses one by one, says which of them is better."""
    has_text_only: ClassVar[bool] = False
    """Whether a row without images is asked about its text alone; else its image counts as missing."""
    headlines: ClassVar[tuple[str, ...]] = ()
    """The figures that results.json holds; all of them when empty."""
    by_protocol: ClassVar[bool] = True
    """Whether results.json holds them by protocol; else those of the official scorer (strict where only that was
    asked) stand alone."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for attribute in ("name", "summary"):
            if not isinstance(getattr(cls, attribute, None), str):
                raise TypeError(f'benchmark {cls.__qualname__}: set {attribute} = "…" in the class')

    @abstractmethod
    def load(self, path: Path, images: Path | None = None) -> list[Row]:
        """Return the labelled rows on disk.

        Args:
            path: file or folder of the rows.
            images: where image paths begin; beside the rows when None.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a field is missing or of another kind; the message names file, row and field.
        """

    @abstractmethod
    def questions(
        self, rows: Iterable[Row], protocol: ProtocolName, *, draws: int | None = None, seed: int = 0
    ) -> Iterator[Question]:
        """Yield what a judge has to be asked about these rows.

        Args:
            draws: judgments per row where the protocol draws several; the suite's own number when None.
            seed: of whatever is drawn at random.
        """

    @abstractmethod
    def score(
        self,
        rows: Sequence[Row],
        predictions: Iterable[Prediction],
        protocol: ProtocolName,
        *,
        draws: int | None = None,
    ) -> Scored:
        """Return the statistics of one judge's predictions under one protocol.

        Raises:
            ValueError: a row has no prediction; one with fewer than `draws` is scored by those that it has.
        """

    def parse(self, question: Question, text: str, *, truncated: bool = False) -> Verdict:
        """Return the verdict of an answer; by default as `read_verdict` reads it."""
        reading = read_verdict(text, question.task, len(question.order), truncated, question.wording)
        return reading.in_items(question.order)

    def write_verdict(self, question: Question, verdict: Verdict) -> str:
        """Return words that `parse` reads back as this verdict; by default empty for a tie, which our grammar lacks."""
        if verdict.ranking is not None:
            return write_judgment("", ranking=[question.order.index(i) + 1 for i in verdict.ranking])
        if verdict.rating is not None:
            return write_judgment("", rating=verdict.rating)
        if verdict.winner in question.order:
            return write_judgment("", winner=question.order.index(verdict.winner) + 1)
        return ""

    def layouts(self) -> Sequence[Layout]:
        """Return the layouts of its own script's result files, and of other harnesses'; none by default."""
        return ()

    def published(self) -> Sequence[Sequence[str]]:
        """Return a table of scores that others published under `official`, its header first; empty by default."""
        return ()


def refuse_unrated(suite: Suite, protocols: Iterable[str]) -> None:
    """Refuse the protocol `pointwise` of a suite that does not take it.

    Raises:
        UserError: it is among the protocols.
    """
    if "pointwise" in protocols and not suite.is_rated:
        raise UserError(
            f"{suite.name} has rows of other tasks than pairs, so pointwise does not score it; leave it out"
        )
