"""Engines that fail: a batch is tried again, then split, until the one guilty row carries the error."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from carevl.errors import UserError

_log = logging.getLogger(__name__)

BROKEN = "engine"
"""The kind of failure of a row that an engine failed at, twice and alone."""
TOO_LONG = "too long"
"""The kind of failure of a row of more tokens than the engine reads."""

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Failure:
    """Why a row has no result: a kind to count by, and a message for people."""

    kind: str
    message: str


class SomeRowsError(Exception, Generic[Out]):
    """An engine could not do some of its rows.

    `results` by position for the others, None where a row failed; `failures` by position.
    """

    def __init__(self, results: Sequence[Out | None], failures: Mapping[int, Failure]) -> None:
        first, failure = next(iter(failures.items()))
        super().__init__(f"{len(failures)} of {len(results)} rows failed; row {first}: {failure.message}")
        self.results, self.failures = results, failures


def retry_and_bisect(
    call: Callable[[Sequence[In]], Sequence[Out]],
    rows: Sequence[In],
    reduce_batch_size: Callable[[], bool] = lambda: False,
) -> list[Out | Failure]:
    """Return an engine's result for every row, or why it has none.

    A batch that raises is tried once more, then in halves. Where memory runs out, the engine's batch
    size is reduced and the batch tried again.

    Args:
        call: one result per row, in their order; it may raise `SomeRowsError` for rows that it refuses.
        reduce_batch_size: makes the engine need less memory at a time; False when it cannot.

    Raises:
        UserError: the engine says that its settings are wrong: no row is to blame.
    """
    if not rows:
        return []
    error: Exception | None = None
    tries = 2
    while tries:
        try:
            return _whole(call(rows), len(rows))
        except SomeRowsError as partial:
            return _merged(partial)
        except UserError:
            raise
        except Exception as raised:
            error = raised
            if not (_out_of_memory(raised) and reduce_batch_size()):
                tries -= 1
    assert error is not None
    if len(rows) == 1:
        return [Failure("out of memory" if _out_of_memory(error) else BROKEN, _first_line(error))]
    _log.warning("a batch of %d rows failed twice (%s); trying its halves", len(rows), _first_line(error))
    half = len(rows) // 2
    return retry_and_bisect(call, rows[:half], reduce_batch_size) + retry_and_bisect(
        call, rows[half:], reduce_batch_size
    )


def _whole(results: Sequence[Out], n_rows: int) -> list[Out | Failure]:
    if len(results) != n_rows:
        raise ValueError(f"the engine gave {len(results)} results for {n_rows} rows")
    return list(results)


def _merged(partial: SomeRowsError[Any]) -> list[Any]:
    return [partial.failures.get(i, result) for i, result in enumerate(partial.results)]


def _out_of_memory(error: Exception) -> bool:
    """Tell whether memory ran out, in Python, in torch on a GPU or in torch's allocator on a CPU."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _first_line(error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")[:300]
    return f"{type(error).__name__}: {first}"
