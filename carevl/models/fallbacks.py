"""What is computed otherwise than the settings say, in sentences: for the log and the manifest of what is made so."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_log = logging.getLogger(__name__)
_collected: ContextVar[list[str] | None] = ContextVar("fallbacks", default=None)


def note_fallback(sentence: str) -> None:
    """Log a sentence as a warning, and keep it for `collect_fallbacks`."""
    _log.warning("%s", sentence)
    collected = _collected.get()
    if collected is not None:
        collected.append(sentence)


@contextmanager
def collect_fallbacks() -> Iterator[list[str]]:
    """Return the list that sentences are added to meanwhile."""
    sentences: list[str] = []
    token = _collected.set(sentences)
    try:
        yield sentences
    finally:
        _collected.reset(token)
