"""Engines that fail: a batch is tried again, then split, until the one guilty row carries the error."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from carevl.errors import UserError

_log = logging.getLogger(__name__)

BROKEN = "engine"
"""The kind of failure of a row that an engine failed at, twice and alone."""
ACTOR_DIED = "actor_died"
"""The kind of failure of a row at which process after process was killed, or crashed, without a word."""
LOST = "engine lost"
"""The kind of failure of the rows whose part broke the engine beyond repair, in one process after the other."""
REFUSED = "refused"
"""The kind of failure of a row that the engine does not take, such as an image that it cannot read."""
TOO_LONG = "too long"
"""The kind of failure of a row of more tokens than the engine reads."""
NOT_FINITE = "not a number"
"""The kind of failure of a row for which a model computed NaN or infinity."""
_MEND = (
    "its weights may be damaged, or too large for float16: compare the files with their source, or set another dtype"
)

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Failure:
    """Why a row has no result: a kind to count by, and a message for people."""

    kind: str
    message: str


class NotFiniteError(ArithmeticError):
    """A model computes NaN or infinity for a batch, or some of it."""

    def __init__(self) -> None:
        self.failure = not_finite("the model computes logits that are not finite")
        super().__init__(self.failure.message)


def not_finite(found: str) -> Failure:
    """Return the failure of a row for which a model computed NaN or infinity.

    Args:
        found: where, in words.
    """
    return Failure(NOT_FINITE, f"{found}; {_MEND}")


class EngineLostError(Exception):
    """An engine that this process cannot mend: on a GPU, every later call fails too."""


_LOST_PATTERN = re.compile(
    r"illegal memory access|device-side assert|illegal instruction|misaligned address|illegal address|"
    r"unspecified launch failure|hardware stack error|uncorrectable (ecc|nvlink) error|"
    r"(cublas|cudnn)_status_(internal_error|execution_failed|not_initialized|mapping_error)",
    re.IGNORECASE,
)


@dataclass
class LostRows:
    """Whether an engine was lost while its rows were marked."""

    is_lost: bool = False


_marking: ContextVar[LostRows | None] = ContextVar("marking", default=None)


@contextmanager
def mark_lost_rows() -> Iterator[LostRows]:
    """Let rows carry the error when their engine is lost, in place of `EngineLostError`."""
    lost = LostRows()
    token = _marking.set(lost)
    try:
        yield lost
    finally:
        _marking.reset(token)


_failing: ContextVar[Failure | None] = ContextVar("failing", default=None)


@contextmanager
def fail_rows(failure: Failure) -> Iterator[None]:
    """Let all rows carry a failure, and ask no engine."""
    token = _failing.set(failure)
    try:
        yield
    finally:
        _failing.reset(token)


def is_lost(error: BaseException | None) -> bool:
    """Tell whether an error, or one that it came from, left the engine beyond repair, as a broken CUDA context does."""
    while error is not None:
        names = {kind.__name__ for kind in type(error).__mro__}
        if names & {"AcceleratorError", "EngineDeadError"} and not is_out_of_memory(error):
            return True
        if isinstance(error, EngineLostError) or _LOST_PATTERN.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


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
        EngineLostError: it is beyond repair; inside `mark_lost_rows`, all rows carry that.
    """
    failure = _failing.get()
    return _retry(call, rows, reduce_batch_size) if failure is None else [failure for _ in rows]


def _retry(
    call: Callable[[Sequence[In]], Sequence[Out]], rows: Sequence[In], reduce_batch_size: Callable[[], bool]
) -> list[Out | Failure]:
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
        except NotFiniteError as raised:  # a second time it would be the same
            error, tries = raised, 0
        except Exception as raised:
            error = raised
            if is_lost(raised):
                return _lose(rows, raised)
            if not (is_out_of_memory(raised) and reduce_batch_size()):
                tries -= 1
    assert error is not None
    if len(rows) == 1:
        return [_failure(error)]
    _log.warning("a batch of %d rows failed twice (%s); trying its halves", len(rows), first_line(error))
    half = len(rows) // 2
    return _retry(call, rows[:half], reduce_batch_size) + _retry(call, rows[half:], reduce_batch_size)


def _failure(error: Exception) -> Failure:
    """Return why a row failed that was alone in its batch."""
    if isinstance(error, NotFiniteError):
        return error.failure
    return Failure("out of memory" if is_out_of_memory(error) else BROKEN, first_line(error))


def retry_engine(engine: Any, call: Callable[[Sequence[In]], Sequence[Out]], rows: Sequence[In]) -> list[Out | Failure]:
    """Apply `retry_and_bisect`; an engine that has `reduce_batch_size` is asked for it when memory runs out."""
    return retry_and_bisect(call, rows, getattr(engine, "reduce_batch_size", lambda: False))


def _lose(rows: Sequence[In], error: Exception) -> list[Any]:
    lost = _marking.get()
    if lost is None:
        raise EngineLostError(first_line(error)) from error
    lost.is_lost = True
    return [Failure(LOST, first_line(error)) for _ in rows]


def _whole(results: Sequence[Out], n_rows: int) -> list[Out | Failure]:
    if len(results) != n_rows:
        raise ValueError(f"the engine gave {len(results)} results for {n_rows} rows")
    return list(results)


def _merged(partial: SomeRowsError[Any]) -> list[Any]:
    return [partial.failures.get(i, result) for i, result in enumerate(partial.results)]


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out, in Python, in torch on a GPU or in torch's allocator on a CPU."""
    text = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")
    return isinstance(error, MemoryError) or any(sign in text for sign in signs)


def first_line(error: BaseException) -> str:
    """Return the error's type and the first line of its message."""
    first = next(iter(str(error).splitlines()), "")[:300]
    return f"{type(error).__name__}: {first}"
