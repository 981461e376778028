"""What every benchmark module offers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from carevl.benchmarks.predictions import Prediction
from carevl.benchmarks.questions import Decoding, Question
from carevl.benchmarks.rows import Row
from carevl.judging.prompts import Verdict
from carevl.settings.data import ProtocolName
from carevl.stats.bootstrap import Scored


class Benchmark(Protocol):
    """A benchmark's protocol. Each is a module whose functions have these names and types."""

    NAME: str
    DRAWS: int
    """Samples per row under `official` and `official_scorer` unless told otherwise."""
    DECODING: Decoding
    """How the official run generates."""

    def load(self, path: Path, images: Path | None = ...) -> list[Row]:
        """The labelled rows on disk."""

    def questions(
        self, rows: Iterable[Row], protocol: ProtocolName, *, draws: int = ..., seed: int = ...
    ) -> Iterator[Question]:
        """What has to be asked of a judge."""

    def parse(self, question: Question, text: str, *, truncated: bool = ...) -> Verdict:
        """The verdict of an answer."""

    def say(self, question: Question, verdict: Verdict) -> str:
        """Words that `parse` reads back as this verdict."""

    def score(
        self, rows: Sequence[Row], predictions: Iterable[Prediction], protocol: ProtocolName, *, draws: int = ...
    ) -> Scored:
        """Figures of one judge's predictions under one protocol."""
