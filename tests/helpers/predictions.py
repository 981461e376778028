"""Rows and answers made by hand for the scorers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carevl.benchmarks.predictions import Prediction
from carevl.benchmarks.rows import Row
from carevl.stats.bootstrap import Scored, bootstrap


@pytest.fixture
def shared_data() -> Path:
    path = Path(__file__).parents[2].parent / "shared/data/benchmarks"
    if not path.is_dir():
        pytest.skip(f"the public benchmark rows are not at {path}")
    return path


@pytest.fixture(scope="session")
def pair() -> Callable[..., Row]:
    """A pair whose first response is the better one."""

    def make(key: str, group: str = "general", gold: tuple[float, ...] = (1.0, 0.0), **fields: Any) -> Row:
        return Row(key, "pairwise", group, "Which?", fields.pop("responses", ("one", "two")), gold, **fields)

    return make


@pytest.fixture(scope="session")
def answer() -> Callable[..., Prediction]:
    """A prediction; every field can be given."""

    def make(key: str, **fields: Any) -> Prediction:
        values = {
            "benchmark": "b",
            "protocol": "strict",
            "judge": "j",
            "order": (0, 1),
            "sample": 0,
            "prompt_hash": "h",
            "text": "",
            "winner": None,
            "ranking": None,
            "rating": None,
            "status": "ok",
            "probability": None,
        }
        return Prediction(key=key, **values | fields)

    return make


@pytest.fixture(scope="session")
def both_orders(answer: Callable[..., Prediction]) -> Callable[..., list[Prediction]]:
    """A pair judged as stored and reversed; None is an answer without a verdict."""

    def make(key: str, first: int | None, second: int | None) -> list[Prediction]:
        return [
            answer(key, order=order, winner=winner, status="none" if winner is None else "ok")
            for order, winner in (((0, 1), first), ((1, 0), second))
        ]

    return make


@pytest.fixture(scope="session")
def values() -> Callable[[Scored], dict[str, float | None]]:
    """The figures without their intervals."""

    def compute(scored: Scored) -> dict[str, float | None]:
        result = bootstrap(scored.statistics, scored.units, resamples=1, seed=0)
        return {name: figure["value"] for name, figure in result.items()}

    return compute
