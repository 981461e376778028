"""Experts of every kind behind one call: rows of a user turn and its responses to one score per response."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from carevl.errors import UserError
from carevl.models.conversations import Conversation, Encoded, encode
from carevl.models.engines import scorer
from carevl.models.locate import loading_arguments, locate, weights_fingerprint
from carevl.models.row_errors import Failure, SomeRowsError, retry_and_bisect

if TYPE_CHECKING:
    from carevl.settings.models import Expert

Row = tuple[str, Sequence[str | Encoded]]
"""A user turn and the responses to it; an encoded response stands for the whole conversation."""


def load(expert: Expert) -> Callable[[Sequence[Row]], list[list[float] | Failure]]:
    """Loads an expert; returns what gives one score per response of every row, or why a row has none.

    Raises:
        UserError: the expert cannot be loaded, or its engine and its reference disagree.
    """
    if expert.kind == "endpoint":
        from carevl.models.experts.endpoint import EndpointJudge

        assert expert.endpoint is not None
        judge = EndpointJudge(expert.path, expert.endpoint)
        return lambda rows: retry_and_bisect(judge.score_rows, cast("Sequence[tuple[str, Sequence[str]]]", rows))
    if expert.kind == "python":
        engine = _python(expert.path)
    else:
        engine = scorer(expert, expert.batch_tokens, expert.parity_tolerance)

    def score_rows(rows: Sequence[Row]) -> list[list[float]]:
        return _by_row(engine.score, rows)

    reduce_batch_size = getattr(engine, "reduce_batch_size", lambda: False)
    return lambda rows: retry_and_bisect(score_rows, rows, reduce_batch_size)


def encoder(expert: Expert) -> Callable[[Sequence[tuple[str, Sequence[str]]]], list[list[Encoded]]] | None:
    """What encodes rows as the expert's engine does; None where the expert reads texts."""
    if expert.kind != "reward_model":
        return None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(locate(expert.path), **loading_arguments(expert))

    def encoded(rows: Sequence[tuple[str, Sequence[str]]]) -> list[list[Encoded]]:
        made = iter(encode(tokenizer, [(turn, response) for turn, responses in rows for response in responses]))
        return [[next(made) for _ in responses] for _, responses in rows]

    return encoded


def fingerprint(expert: Expert) -> str:
    """What identifies what an expert computes: its weights, a class's source, or an endpoint's address and model."""
    if expert.kind == "endpoint":
        assert expert.endpoint is not None
        return f"{expert.endpoint.url} {expert.path}"
    if expert.kind == "python":
        spec = _module_spec(expert.path)
        source = Path(spec.origin).read_bytes() if spec.has_location and spec.origin else b""
        return hashlib.sha256(source).hexdigest()[:16]
    return weights_fingerprint(expert.path, expert.revision)


def _by_row(score: Callable[[list[Conversation | Encoded]], Sequence[float]], rows: Sequence[Row]) -> list[list[float]]:
    """Scores of the rows' conversations, one after the other; a row fails with the first of its conversations.

    Raises:
        ValueError: the engine gave another number of scores than it was asked for.
        SomeRowsError: some rows failed.
    """
    conversations = [
        response if isinstance(response, Encoded) else (turn, response)
        for turn, responses in rows
        for response in responses
    ]
    failures: dict[int, Failure] = {}
    try:
        scores: Sequence[float | None] = score(conversations)
    except SomeRowsError as some:
        scores, failures = some.results, dict(some.failures)
    if len(scores) != len(conversations):
        raise ValueError(f"the expert gave {len(scores)} scores for {len(conversations)} conversations")
    results: list[list[Any]] = []
    failed: dict[int, Failure] = {}
    start = 0
    for i, (_, responses) in enumerate(rows):
        end = start + len(responses)
        results.append(list(scores[start:end]))
        for place in reversed(range(start, end)):
            if place in failures:
                failed[i] = failures[place]
        start = end
    if failed:
        raise SomeRowsError(results, failed)
    return results


def _module_spec(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        spec = importlib.util.find_spec(module) if name else None
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise UserError(f"expert {path}: there is no such class; write package.module:Class, importable on every node")
    return spec


def _python(path: str) -> Any:
    """An instance of a class named `package.module:Class`: no arguments, and `score(conversations)` as engines have."""
    _module_spec(path)
    module, _, name = path.partition(":")
    made = getattr(importlib.import_module(module), name, None)
    if not isinstance(made, type) or not callable(getattr(made, "score", None)):
        raise UserError(f"expert {path}: {module} has no class {name} with a method score(conversations)")
    return made()
