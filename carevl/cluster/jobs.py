"""The job of a pool of actors, the tally that it reports, and the check that no row is lost or doubled on the way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from carevl.store.run import RunError
from carevl.store.table import Table

if TYPE_CHECKING:
    from carevl.cluster.earlier_rows import EarlierTable
    from carevl.settings.models import Pool


class Processor(ABC):
    """Work on rows inside an actor: input tables to one output table.

    A subclass is a small dataclass whose fields are settings: it is pickled to every actor and loads nothing before
    `setup`.
    """

    def setup(self) -> None:  # noqa: B027 (a processor may have nothing to load)
        """Load the model; called once in an actor, before the first part that needs it.

        Raises:
            ValueError: the settings do not suit the model.
        """

    @abstractmethod
    def process(self, tables: Mapping[str, pa.Table]) -> pa.Table:
        """Return the output rows, which have an `error` column, of input rows by table name."""

    def preprocess(self, tables: Mapping[str, pa.Table]) -> Mapping[str, pa.Table]:
        """Return the input rows with some of the work done that needs no engine; `process` takes both alike.

        Preparers call it ahead of the actors, without `setup`: what it needs it loads itself, when it is first called.
        """
        return tables

    def row_inputs(self, tables: Mapping[str, pa.Table]) -> Mapping[tuple[Any, ...], Any]:
        """Return what output rows depend on besides this processor and what names them: request to a value to compare.

        Where it is equal in an earlier table, rows are taken from there, and `process` finds these requests in the
        table `known` if others of their key are left. Requests about rows with an error are left out. Without this
        method nothing is taken.
        """
        del tables
        return {}

    @property
    def has_preprocess(self) -> bool:
        """Whether preparers have anything to do."""
        return type(self).preprocess is not Processor.preprocess

    def load(self) -> Self:
        """Return a copy that is set up. Dropping the copy drops the model with it."""
        loaded = copy(self)
        loaded.setup()
        return loaded


@dataclass(frozen=True)
class PoolJob:
    """The work of one pool: a processor over every part.

    `sources` are the tables whose part n is needed to make part n of `target`. Every value of `key` in the first of
    them has to come out again, or every one of `expected_keys`; key and the columns of `identity` name an output row,
    so that none is there twice.
    """

    name: str
    processor: Processor
    sources: Mapping[str, Table]
    target: Table
    pool: Pool
    key: str
    identity: tuple[str, ...]
    expected_keys: Callable[[Mapping[str, pa.Table]], Iterable[str]] | None = None
    retry: bool = False
    """Whether to make the rows anew that have an error of this job, and no others."""
    parts: tuple[int, ...] | None = None
    """Numbers of the parts to make, where they are not those of all jobs at work together."""
    attempt: str = ""
    """Names the pass that the parts are made in."""
    request: tuple[str, ...] = ()
    """Columns that name what is asked at once about a key; nothing where that is all."""
    earlier: tuple[EarlierTable, ...] = ()
    """Tables of which rows are taken that come out alike."""


_ADDED = (
    "parts",
    "rows_in",
    "rows_out",
    "rows_taken",
    "errors",
    "busy_seconds",
    "load_seconds",
    "prepare_seconds",
)


@dataclass
class Tally:
    """Counts of a pool's parts, rows and rows with an error, and its time.

    `rows_taken`: of `rows_out`, those that an earlier table had.
    `busy_seconds`: of its actors at work, without `load_seconds`, in which they loaded what they work with.
    `prepare_seconds`: of its preparers.
    `actors`: how many it has had. `actor_seconds`: of all its actors since its first part was begun.
    `restarts`: processes of its actors that ended before their time and were started again.
    `fallbacks`: what its actors computed otherwise than the settings say, in sentences.
    """

    parts: int = 0
    rows_in: int = 0
    rows_out: int = 0
    rows_taken: int = 0
    errors: int = 0
    busy_seconds: float = 0.0
    load_seconds: float = 0.0
    prepare_seconds: float = 0.0
    actors: int = 0
    actor_seconds: float = 0.0
    restarts: int = 0
    trouble: str = ""
    fallbacks: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count the parts that another tally counted."""
        for name in _ADDED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.fallbacks = list(dict.fromkeys([*self.fallbacks, *other.fallbacks]))

    @property
    def busy_share(self) -> float:
        """Share of the time of its actors, once they had loaded, in which they worked; 1 before there is any."""
        return min(1.0, self.busy_seconds / max(self.actor_seconds - self.load_seconds, self.busy_seconds, 1e-9))

    def facts(self) -> dict[str, Any]:
        """Return what a manifest records of it."""
        numbers = {name: round(value, 3) for name, value in asdict(self).items() if isinstance(value, int | float)}
        facts = numbers | {"busy_share": round(self.busy_share, 3)}
        return facts | ({"fallbacks": self.fallbacks} if self.fallbacks else {})


def check_keys(job: PoolJob, rows_in: Mapping[str, pa.Table], rows_out: pa.Table) -> None:
    """Check that every expected key goes out, no other does, and no row is there twice.

    Raises:
        RunError: one of these does not hold.
    """
    expected, keys = unique_keys(job, rows_in), pc.unique(rows_out[job.key])
    lost, invented = _count_missing(expected, keys), _count_missing(keys, expected)
    doubled = len(rows_out) - _count_distinct(rows_out.select([job.key, *job.identity]))
    if lost or invented or doubled:
        raise RunError(
            f"{job.name}: {len(expected)} keys came in; "
            f"{lost} were lost, {invented} invented and {doubled} rows doubled"
        )


def unique_keys(job: PoolJob, rows_in: Mapping[str, pa.Table]) -> pa.Array:
    """Return the keys of the rows that a job makes of these."""
    first = next(iter(rows_in.values()))
    return pc.unique(pa.array(job.expected_keys(rows_in), pa.string()) if job.expected_keys else first[job.key])


def _count_missing(keys: pa.Array, others: pa.Array) -> int:
    return len(keys.filter(pc.invert(pc.is_in(keys, others))))


def _count_distinct(rows: pa.Table) -> int:
    # Arrow groups by columns of plain values only.
    columns = [
        pa.array(map(repr, column.to_pylist()), pa.string()) if pa.types.is_nested(column.type) else column
        for column in rows.columns
    ]
    plain = pa.table(columns, rows.column_names)
    return int(plain.group_by(plain.column_names).aggregate([]).num_rows)
