"""Streams the parts of tables through pools of Ray Data actors, one pool per task, all pools at work together.

A part that is already in a task's target is passed by, so an interrupted pass goes on where it stopped; an actor or
a node that dies costs the part that it was at. A part's rows are the same whoever makes it and whenever.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from carevl.runs import RunError, Table
from carevl.tables import failures

if TYPE_CHECKING:
    from carevl.config import Pool

Work = Callable[[Mapping[str, pa.Table]], pa.Table]
"""Input rows by table name to output rows, which have an `error` column."""


@dataclass(frozen=True)
class Task:
    """What one pool does with every part.

    `make(**arguments)` is called once in each actor and returns the work; `sources` are the tables whose part n it
    needs to make part n of `target`. Every value of `key` in the first of them has to come out again, or every one
    that `wanted` picks; key and the columns of `identity` name an output row, so that none is there twice.
    """

    name: str
    make: Callable[..., Work]
    arguments: Mapping[str, Any]
    sources: Mapping[str, Table]
    target: Table
    pool: Pool
    key: str
    identity: tuple[str, ...]
    wanted: Callable[[Mapping[str, pa.Table]], Iterable[str]] | None = None
    retry: bool = False
    """Whether to make the rows anew that have an error of this task, and no others."""


@dataclass
class Tally:
    """What a task has done: parts, rows, rows with an error, and seconds of its actors at work."""

    parts: int = 0
    rows_in: int = 0
    rows_out: int = 0
    errors: int = 0
    busy_seconds: float = 0.0

    def add(self, other: Tally) -> None:
        """Counts what another tally counted."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


class _Actor:
    """A task's work inside a Ray Data actor; it loads nothing before the first part that needs it."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.work: Work | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        task, [number] = self.task, batch["part"].tolist()
        started = time.monotonic()
        rows_in: Mapping[str, pa.Table] = {name: table.read(number) for name, table in task.sources.items()}
        if task.target.part(number).exists() and not task.retry:
            rows_out = task.target.read(number, ["error"])
        else:
            rows_out = self._retried(rows_in, number) if task.retry else self._made(rows_in)
            task.target.write(number, rows_out)
        errors = failures(rows_out["error"])
        tally = Tally(1, next(iter(rows_in.values())).num_rows, len(rows_out), errors, time.monotonic() - started)
        batch[task.name] = np.array([json.dumps(asdict(tally))])
        return batch

    def _made(self, rows_in: Mapping[str, pa.Table]) -> pa.Table:
        self.work = self.work or self.task.make(**self.task.arguments)
        rows_out = self.work(rows_in)
        _check_keys(self.task, rows_in, rows_out)
        return rows_out

    def _retried(self, rows_in: Mapping[str, pa.Table], number: int) -> pa.Table:
        """The part with those rows made anew that failed here, although what came in was good."""
        key, made = self.task.key, self.task.target.read(number)
        name, first = next(iter(rows_in.items()))
        good = set(first.filter(pc.is_null(first["error"]))[key].to_pylist())
        failed = pa.array(sorted(good & set(made.filter(pc.is_valid(made["error"]))[key].to_pylist())), pa.string())
        if not len(failed):
            return made
        again = self._made({**rows_in, name: first.filter(pc.is_in(first[key], failed))})
        return pa.concat_tables([made.filter(pc.invert(pc.is_in(made[key], failed))), again])


def _check_keys(task: Task, rows_in: Mapping[str, pa.Table], rows_out: pa.Table) -> None:
    """Every wanted key goes out, no other does, and no row is there twice."""
    wanted = set(task.wanted(rows_in) if task.wanted else next(iter(rows_in.values()))[task.key].to_pylist())
    found = set(rows_out[task.key].to_pylist())
    doubled = len(rows_out) - len({repr(row) for row in rows_out.select([task.key, *task.identity]).to_pylist()})
    if found != wanted or doubled:
        raise RunError(
            f"{task.name}: {len(wanted)} keys came in; {len(wanted - found)} were lost, "
            f"{len(found - wanted)} invented and {doubled} rows doubled"
        )


def run_tasks(
    tasks: Sequence[Task], parts: Sequence[int], max_error_fraction: float, say: Callable[[str, Tally, int], None]
) -> dict[str, Tally]:
    """Runs every task over every part and returns what each did.

    Args:
        parts: numbers of the parts to make.
        max_error_fraction: share of a task's rows that may carry an error.
        say: called after each part with (task, what it has done, number of parts).

    Raises:
        RunError: more rows failed than allowed; what is done stays.
    """
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "ray.data._internal.progress"):
        logging.getLogger(name).setLevel(logging.ERROR)
    stream = ray.data.from_items([{"part": number} for number in parts], override_num_blocks=len(parts))
    for task in tasks:
        low, high = task.pool.bounds
        stream = stream.map_batches(
            _Actor,
            fn_constructor_args=(task,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=low, max_size=high),
            num_cpus=task.pool.num_cpus,
            num_gpus=task.pool.num_gpus or None,
            resources=task.pool.resources or None,
        )
    tallies = {task.name: Tally() for task in tasks}
    for row in stream.iter_rows():
        for task in tasks:
            tally = tallies[task.name]
            tally.add(Tally(**json.loads(row[task.name])))
            say(task.name, tally, len(parts))
    for name, tally in tallies.items():
        if tally.errors > max_error_fraction * tally.rows_out:
            raise RunError(
                f"{name}: {tally.errors} of {tally.rows_out} rows failed, more than "
                f"max_error_fraction = {max_error_fraction:.1%} allows; rows and errors are kept"
            )
    return tallies
