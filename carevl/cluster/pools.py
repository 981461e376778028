"""Streams the parts of tables through pools of Ray Data actors, one pool per task, side by side.

No pool waits for another. A part that is already in a task's target is passed by, so an interrupted pass goes on
where it stopped; an actor or a node that dies costs the part that it was at. A part's rows are the same whoever makes
it and whenever.
"""

from __future__ import annotations

import json
import logging
import pickle
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from carevl.cluster.resources import Resources, nodes_there
from carevl.cluster.sizing import preparers, shares
from carevl.errors import UserError
from carevl.models.row_errors import BROKEN
from carevl.store.run import RunError
from carevl.store.schemas import failures
from carevl.store.table import Table

if TYPE_CHECKING:
    from carevl.settings.models import Pool

_log = logging.getLogger(__name__)

_IN_FLIGHT = 2
"""Parts that an actor has at a time: one that it works on and one that waits for it."""

_LOOK = 10.0
"""Seconds after which a pool that has said nothing is looked at."""

_MOST_READY = 2**30
"""Bytes of a part that a preparer hands over at most; the actors make larger ones ready themselves."""

Work = Callable[[Mapping[str, pa.Table]], pa.Table]
"""Input rows by table name to output rows, which have an `error` column."""

Prepare = Callable[[Mapping[str, pa.Table]], Mapping[str, pa.Table]]
"""Input rows to the same with some of the work done that needs no engine; a work makes the same of both."""


@dataclass(frozen=True)
class Task:
    """What one pool does with every part.

    `make(**arguments)` is called once in each actor and returns the work; `prepare(**arguments)` in each preparer that
    the pool has, and returns what makes parts ready ahead of the actors. `sources` are the tables whose part n is
    needed to make part n of `target`. Every value of `key` in the first of them has to come out again, or every one
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
    parts: tuple[int, ...] | None = None
    """Numbers of the parts to make, where they are not those of all tasks at work together."""
    prepare: Callable[..., Prepare] | None = None


@dataclass
class Tally:
    """What a pool has done: parts, rows, rows with an error; and its time.

    `busy_seconds`: of its actors at work, without `load_seconds`, in which they loaded what they work with.
    `prepare_seconds`: of its preparers.
    `actors`: how many it has had. `actor_seconds`: of all its actors since its first part was begun.
    """

    parts: int = 0
    rows_in: int = 0
    rows_out: int = 0
    errors: int = 0
    busy_seconds: float = 0.0
    load_seconds: float = 0.0
    prepare_seconds: float = 0.0
    actors: int = 0
    actor_seconds: float = 0.0
    trouble: str = ""

    def add(self, other: Tally) -> None:
        """Counts the parts that another tally counted."""
        for name in ("parts", "rows_in", "rows_out", "errors", "busy_seconds", "load_seconds", "prepare_seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def busy_share(self) -> float:
        """Share of the time of its actors, once they had loaded, in which they worked; 1 before there is any."""
        return min(1.0, self.busy_seconds / max(self.actor_seconds - self.load_seconds, self.busy_seconds, 1e-9))

    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        told = {name: round(value, 3) for name, value in asdict(self).items() if name != "trouble"}
        return told | {"busy_share": round(self.busy_share, 3)}


class _Preparer:
    """Reads parts and makes them ready, ahead of the actors of a task.

    What goes wrong here is left to the actor, which reads the part itself and meets it again.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.prepare: Prepare | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        ready = self._ready(*batch["part"].tolist())
        seconds = np.array([time.monotonic() - started])
        return {**batch, "ready": np.array([ready], dtype=object), "prepare_seconds": seconds}

    def _ready(self, number: int) -> bytes:
        """A part's tables; empty where the actor has to read them itself."""
        if self.task.target.part(number).exists():
            return b""
        try:
            if self.prepare is None:
                assert self.task.prepare is not None
                self.prepare = self.task.prepare(**self.task.arguments)
            tables = {name: table.read(number) for name, table in self.task.sources.items()}
            ready = pickle.dumps(dict(self.prepare(tables)), protocol=5)
        except (OSError, UserError, ValueError):
            _log.warning("%s: part %d is left to the actor", self.task.name, number, exc_info=True)
            return b""
        return ready if len(ready) < _MOST_READY else b""


class _Actor:
    """A task's work inside a Ray Data actor; it loads nothing before the first part that needs it.

    What a person has to mend, such as a full disk, stops the actor: it says why and makes no further part.
    """

    def __init__(self, task: Task) -> None:
        self.task, self.name = task, uuid.uuid4().hex
        self.work: Work | None = None
        self.proven = False
        self.load_seconds = 0.0
        self.stopped = ""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        [number] = batch["part"].tolist()
        [ready], [prepare_seconds] = batch.get("ready", [b""]), batch.get("prepare_seconds", [0.0])
        tally = Tally()
        if not self.stopped:
            try:
                tally = self._part(number, pickle.loads(ready) if ready else None)
                tally.prepare_seconds = float(prepare_seconds)
            except (OSError, UserError) as error:
                self.stopped = " ".join(str(error).split())
        report = {"task": self.task.name, "actor": self.name, "tally": json.dumps(asdict(tally))}
        return {name: np.array([value]) for name, value in {**report, "stopped": self.stopped}.items()}

    def _part(self, number: int, ready: Mapping[str, pa.Table] | None) -> Tally:
        started, self.load_seconds = time.monotonic(), 0.0
        rows_in = ready or {name: table.read(number) for name, table in self.task.sources.items()}
        rows_out = self._rows(number, rows_in)
        errors = failures(rows_out["error"])
        busy = time.monotonic() - started - self.load_seconds
        return Tally(1, next(iter(rows_in.values())).num_rows, len(rows_out), errors, busy, self.load_seconds)

    def _rows(self, number: int, rows_in: Mapping[str, pa.Table]) -> pa.Table:
        """A part's rows, written if they were not there."""
        target, key = self.task.target, self.task.key
        if not target.part(number).exists():
            made = self._made(rows_in)
            target.write(number, made)
            return made
        there = target.read(number, None if self.task.retry else ["error"])
        if not self.task.retry:
            return there
        failed = _failed(self.task, rows_in, there)
        if not len(failed):
            return there
        name, first = next(iter(rows_in.items()))
        again = self._made({**rows_in, name: first.filter(pc.is_in(first[key], failed))})
        made = pa.concat_tables([there.filter(pc.invert(pc.is_in(there[key], failed))), again])
        target.write(number, made)
        return made

    def _made(self, rows_in: Mapping[str, pa.Table]) -> pa.Table:
        """New rows. An engine that worked before and now fails on every row is loaded anew, once."""
        rows_out = self._loaded()(rows_in)
        if self.proven and _all_broken(rows_out):
            _log.warning("%s: every row of a part failed; loading the engine anew", self.task.name)
            self.work, self.proven = None, False
            rows_out = self._loaded()(rows_in)
        check_keys(self.task, rows_in, rows_out)
        self.proven = self.proven or bool(rows_out["error"].null_count)
        return rows_out

    def _loaded(self) -> Work:
        if self.work is None:
            started = time.monotonic()
            try:
                self.work = self.task.make(**self.task.arguments)
            except ValueError as error:  # so engines refuse settings that do not suit a model
                _log.warning("%s cannot be loaded", self.task.name, exc_info=True)
                raise UserError(f"cannot be loaded: {error}") from error
            self.load_seconds += time.monotonic() - started
        return self.work


def _failed(task: Task, rows_in: Mapping[str, pa.Table], made: pa.Table) -> pa.Array:
    """Keys of the rows that failed in this task, although what came in was good."""
    first = next(iter(rows_in.values()))
    good = set(first.filter(pc.is_null(first["error"]))[task.key].to_pylist())
    return pa.array(sorted(good & set(made.filter(pc.is_valid(made["error"]))[task.key].to_pylist())), pa.string())


def _all_broken(rows: pa.Table) -> bool:
    """Whether no row is good and the engine is why for one of them at least."""
    errors = rows["error"]
    return bool(len(rows)) and not errors.null_count and any(error["kind"] == BROKEN for error in errors.to_pylist())


def check_keys(task: Task, rows_in: Mapping[str, pa.Table], rows_out: pa.Table) -> None:
    """Every wanted key goes out, no other does, and no row is there twice."""
    first = next(iter(rows_in.values()))
    wanted = pc.unique(pa.array(task.wanted(rows_in), pa.string()) if task.wanted else first[task.key])
    found = pc.unique(rows_out[task.key])
    lost, invented = (
        len(some.filter(pc.invert(pc.is_in(some, others)))) for some, others in ((wanted, found), (found, wanted))
    )
    doubled = len(rows_out) - _distinct(rows_out.select([task.key, *task.identity]))
    if lost or invented or doubled:
        raise RunError(
            f"{task.name}: {len(wanted)} keys came in; {lost} were lost, {invented} invented and {doubled} rows doubled"
        )


def _distinct(rows: pa.Table) -> int:
    """How many different rows there are; Arrow groups by columns of plain values only."""
    columns = [
        pa.array(map(repr, column.to_pylist()), pa.string()) if pa.types.is_nested(column.type) else column
        for column in rows.columns
    ]
    plain = pa.table(columns, rows.column_names)
    return int(plain.group_by(plain.column_names).aggregate([]).num_rows)


def run_tasks(
    tasks: Sequence[Task],
    parts: Sequence[int],
    max_error_fraction: float,
    say: Callable[[str, Tally, int], None],
    *,
    rates: Mapping[str, float] | None = None,
    nodes: Sequence[Resources] | None = None,
) -> dict[str, Tally]:
    """Runs every task over every part and returns what each did.

    Args:
        parts: numbers of the parts to make, for tasks that name none of their own.
        max_error_fraction: share of a task's rows that may carry an error.
        say: called with (task, what it has done, number of parts) after each part, and when none comes for long.
        rates: rows per second of an actor of each task, for pools of size `auto`; all alike where it is absent.
        nodes: those that actors can be on, for pools of size `auto`; the nodes of the cluster when absent.

    Raises:
        RunError: an actor met what a person has to mend, or more rows failed than allowed; what is done stays.
    """
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "ray.data._internal.progress"):
        logging.getLogger(name).setLevel(logging.ERROR)
    tasks = [task if task.parts is not None else replace(task, parts=tuple(parts)) for task in tasks]
    tasks = _sized(tasks, rates or {}, nodes_there() if nodes is None else nodes)
    pools = {task.name: _Watched(task.pool, len(task.parts or ())) for task in tasks}

    def tell(name: str) -> None:
        say(name, pools[name].tally, pools[name].n_parts)

    stream, *others = map(_stream, tasks)
    stream = stream.union(*others) if others else stream
    stopped: dict[str, str] = {}
    with _watching(tell, pools):
        for row in stream.iter_rows():
            if row["stopped"]:
                stopped.setdefault(row["task"], row["stopped"])
                continue
            pools[row["task"]].take(row)
            tell(row["task"])
    if stopped:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in stopped.items())
        raise RunError(f"{reasons}; the parts that are done stay: mend this, and run the same command again")
    tallies = {name: pool.tally for name, pool in pools.items()}
    for name, tally in tallies.items():
        if tally.errors > max_error_fraction * tally.rows_out:
            raise RunError(
                f"{name}: {tally.errors} of {tally.rows_out} rows failed, more than "
                f"max_error_fraction = {max_error_fraction:.1%} allows; rows and errors are kept, and "
                "`carevl retry` tries those rows again"
            )
    return tallies


def _sized(tasks: Sequence[Task], rates: Mapping[str, float], nodes: Sequence[Resources]) -> list[Task]:
    """The tasks with their numbers of preparers, and of actors where those are `auto`; arguments as for `run_tasks`."""
    n_parts = max(len(task.parts or ()) for task in tasks)
    pools = {task.name: task.pool for task in tasks}
    actors, ahead = shares(pools, n_parts, rates, nodes), preparers(pools, n_parts, nodes)
    sized = []
    for task in tasks:
        if ahead[task.name] < min(task.pool.preparers, n_parts):
            _log.warning("%s: room for %d of %d preparers", task.name, ahead[task.name], task.pool.preparers)
        sizes = {"preparers": ahead[task.name]} | ({"concurrency": actors[task.name]} if task.pool.auto else {})
        sized.append(replace(task, pool=task.pool.model_copy(update=sizes)))
    return sized


def _stream(task: Task) -> Any:
    """A dataset of a row per part that has gone through the task's pool."""
    import ray

    parts = task.parts or ()
    low, high = task.pool.bounds
    stream = ray.data.from_items([{"part": number} for number in parts], override_num_blocks=len(parts))
    if task.prepare is not None and task.pool.preparers and not task.retry:
        stream = stream.map_batches(
            _Preparer,
            fn_constructor_args=(task,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=task.pool.preparers),
            num_cpus=1,
        )
    return stream.map_batches(
        _Actor,
        fn_constructor_args=(task,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=low, max_size=high, max_tasks_in_flight_per_actor=_IN_FLIGHT),
        num_cpus=task.pool.num_cpus,
        num_gpus=task.pool.num_gpus or None,
        resources=task.pool.resources or None,
    )


@contextmanager
def _watching(say: Callable[[str], None], pools: Mapping[str, _Watched]) -> Iterator[None]:
    """Looks at the pools now and then, and says of which of them nothing has come for long."""
    ended = Event()

    def watch() -> None:
        while not ended.wait(_LOOK):
            for name, pool in pools.items():
                if pool.silent():
                    say(name)

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


class _Watched:
    """A pool at work: what it has done, and whether its actors wait or hang."""

    def __init__(self, pool: Pool, n_parts: int) -> None:
        self.tally, self.n_parts = Tally(), n_parts
        self.least = min(pool.bounds[0], n_parts)
        self.names: set[str] = set()
        self.last = time.monotonic()
        self.longest = 0.0
        self.began: float | None = None

    def take(self, row: Mapping[str, Any]) -> None:
        """Counts a part."""
        tally, now = Tally(**json.loads(row["tally"])), time.monotonic()
        taken = tally.busy_seconds + tally.load_seconds
        self.began = now - taken if self.began is None else min(self.began, now - taken)
        self.longest = max(self.longest, taken)
        self.names.add(row["actor"])
        self.last = now
        self.tally.add(tally)
        self.tally.actors = max(len(self.names), self.least)
        self.tally.actor_seconds = self.tally.actors * (now - self.began)
        self.tally.trouble = self._starves()

    def silent(self) -> bool:
        """Whether no part has come for far longer than any took so far, or for a minute before the first."""
        waited = time.monotonic() - self.last
        if self.tally.parts == self.n_parts or waited < max(60.0, 3 * self.longest):
            return False
        if self.names:
            self.tally.trouble = f"stalls: no part for {waited:.0f} s, none took over {self.longest:.0f} s"
        else:
            self.tally.trouble = f"no part yet after {waited:.0f} s: its actors load their model, or wait for room"
        return True

    def _starves(self) -> str:
        settled = self.tally.parts >= 2 * self.tally.actors and self.tally.actor_seconds > 5 * self.tally.actors
        if not settled or self.tally.busy_share >= 0.5:
            return ""
        return f"starves: its actors are busy {self.tally.busy_share:.0%} of the time"
