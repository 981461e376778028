"""Rows that an earlier table has and a new one would make alike: they are taken over, and only the rest is asked.

A caption is a function of image and captioner, a score of the item, the texts read and the expert, a judgment of its
prompts, the judge and the seed, a prediction of the question with its images, the judge and the seed. What of that
holds for a whole table, such as the model, is compared where tables are chosen (`stages.base.RunContext.earlier`); what
differs from row to row, such as the caption that an expert reads, here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from carevl.store.damage import DamagedError
from carevl.store.table import Table

if TYPE_CHECKING:
    from carevl.cluster.jobs import PoolJob

_log = logging.getLogger(__name__)

Request = tuple[Any, ...]
"""What names a request, whose rows are made together: a job's key, and the columns of its `request`."""

KNOWN = "known"
"""Name of the input table with the requests whose rows are there already."""

_NONE = object()


@dataclass(frozen=True)
class EarlierTable:
    """A table that was made by equal means.

    `sources` are tables that it was made from, by the names that they have in the job. Where one is missing the job's
    own is read, as that of images and items, whose rows are named by their contents.
    """

    rows: Table
    sources: Mapping[str, Table]
    same_parts: bool = True
    """Whether rows are in the part in which the job has them."""

    def parts(self, number: int) -> list[int]:
        """Return the parts that may have rows of part `number`."""
        tables = (self.rows, *self.sources.values())
        try:
            # Rows have seldom moved far, and the search ends once none is missing.
            candidates = [number] if self.same_parts else sorted(self.rows.parts(), key=lambda n: abs(n - number))
        except DamagedError:
            return []
        return [part for part in candidates if all(table.part(part).exists() for table in tables)]


@dataclass(frozen=True)
class Part:
    """A part of a job's input: keys of all its rows, the output that earlier tables have, and the input that is left.

    Where earlier tables have some of what is asked about a row that is left, `KNOWN` among the input names it.
    """

    keys: Sequence[str]
    requests: Sequence[Request]
    """Those that can be asked, as a process that takes nothing would ask them."""
    taken: pa.Table | None
    left: Mapping[str, pa.Table]

    @classmethod
    def read(cls, job: PoolJob, number: int) -> Part:
        """Read a part, and what earlier tables have of it unless it is made already."""
        rows_in = {name: table.read(number) for name, table in job.sources.items()}
        name, first = next(iter(rows_in.items()))
        keys = first[job.key].to_pylist()
        requests = {} if job.target.part(number).exists() or not job.earlier else job.processor.row_inputs(rows_in)
        taken, missing = _take_rows(job, number, rows_in, requests)
        if taken is None:
            return cls(keys, [], None, rows_in)
        unfinished = {key for key, *_ in missing}
        answered = pa.array(sorted({key for key, *_ in requests} - unfinished), pa.string())
        left = {**rows_in, name: first.filter(pc.invert(pc.is_in(first[job.key], answered)))}
        return cls(keys, list(requests), taken, left | {KNOWN: taken.select([job.key, *job.request])})

    @property
    def rows_taken(self) -> int:
        """How many rows earlier tables have."""
        return 0 if self.taken is None else int(self.taken.num_rows)

    def in_order(self, job: PoolJob, *tables: pa.Table) -> pa.Table:
        """Return output rows together, as a process would have made them that takes nothing."""
        rows = pa.concat_tables(tables, promote_options="permissive")
        columns = (job.key, *job.request)
        places = {key: n for n, key in enumerate(self.keys)}
        order = {request: n for n, request in enumerate(self.requests)}
        requests = [request_of(row, columns) for row in rows.select(columns).to_pylist()]
        by_place = sorted(range(len(requests)), key=lambda n: (places[requests[n][0]], order.get(requests[n], 0)))
        return rows.take(pa.array(by_place, pa.int64()))


def _take_rows(
    job: PoolJob, number: int, rows_in: Mapping[str, pa.Table], requests: Mapping[Request, Any]
) -> tuple[pa.Table | None, set[Request]]:
    """Return the output rows that earlier tables have, None where there are none; and the requests without."""
    missing, taken = dict(requests), []
    for earlier in job.earlier:
        for part in earlier.parts(number) if missing else ():
            try:
                rows = earlier.rows.read(part)
                sources = {name: table.read(part) for name, table in earlier.sources.items()}
            except (OSError, DamagedError):
                _log.warning("%s: nothing is taken of %s", job.name, earlier.rows.part(part), exc_info=True)
                continue
            inputs = job.processor.row_inputs({**rows_in, **sources})
            equal = {
                r: n for r, n in _good_rows(job, rows).items() if r in missing and inputs.get(r, _NONE) == missing[r]
            }
            if equal:
                taken.append(rows.take(pa.array([n for places in equal.values() for n in places], pa.int64())))
            missing = {request: value for request, value in missing.items() if request not in equal}
    return (pa.concat_tables(taken, promote_options="permissive") if taken else None), set(missing)


def _good_rows(job: PoolJob, rows: pa.Table) -> dict[Request, list[int]]:
    """Return the places of a request's rows, of requests none of whose rows has an error.

    Nothing where a version before did not store what names a request.
    """
    if not {job.key, *job.request} <= set(rows.column_names):
        return {}
    places: dict[Request, list[int]] = {}
    failed: set[Request] = set()
    for n, row in enumerate(rows.select([job.key, *job.request, "error"]).to_pylist()):
        request = request_of(row, (job.key, *job.request))
        places.setdefault(request, []).append(n)
        if row["error"] is not None:
            failed.add(request)
    return {request: rows for request, rows in places.items() if request not in failed}


def known_requests(tables: Mapping[str, pa.Table]) -> set[Request]:
    """Return the requests whose rows are there already."""
    known = tables.get(KNOWN)
    return set() if known is None else {request_of(row, known.column_names) for row in known.to_pylist()}


def request_of(row: Mapping[str, Any], columns: Iterable[str]) -> Request:
    """Return what names a request in a row."""
    return tuple(tuple(value) if isinstance(value := row[name], list) else value for name in columns)
