"""How fast an actor of a pool is: its model loaded and timed on one batch of rows, where Ray would put it.

What was measured stays in the run directory (`rates.json`), so that `carevl plan --measure` serves the run after it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from carevl.cluster.resources import Resources, needed
from carevl.store.run import Run
from carevl.store.table import write_atomically

if TYPE_CHECKING:
    import pyarrow as pa

    from carevl.cluster.pools import Task, Work
    from carevl.settings.models import Pool

_FILE = "rates.json"


@dataclass(frozen=True)
class Rate:
    """What one actor takes: seconds to load and for its first row, then rows per second."""

    load_seconds: float
    rows_per_second: float


def timed(
    each: Resources, make: Callable[..., Work], arguments: Mapping[str, Any], tables: Mapping[str, pa.Table]
) -> tuple[pa.Table, Rate]:
    """Does the work once, in a task that reserves what an actor would; returns its rows and how fast it was.

    Args:
        tables: the rows of the first are counted.
    """
    import ray

    def work() -> tuple[pa.Table, Rate]:
        started = time.monotonic()
        loaded = make(**arguments)
        first = next(iter(tables))
        loaded({**tables, first: tables[first].slice(0, 1)})
        ready = time.monotonic()
        made = loaded(tables)
        return made, Rate(ready - started, max(len(tables[first]), 1) / (time.monotonic() - ready))

    custom = {name: amount for name, amount in each.items() if name not in ("CPU", "GPU")}
    reserve = ray.remote(num_cpus=each["CPU"], num_gpus=each["GPU"], resources=custom, max_calls=1)
    done: tuple[pa.Table, Rate] = ray.get(reserve(work).remote())
    return done


def rates(where: Run, tasks: Sequence[Task], say: Callable[[str], None]) -> dict[str, float]:
    """Rows per second of an actor of each task; measured on a batch of rows where it is not known yet."""
    known = _known(where)
    found = {}
    for task in tasks:
        key = _key(task.target.directory.name, task.pool)
        if key not in known:
            say(f"{task.name:16s} timing one actor, to find how many there should be")
            _, rate = timed(needed(task.pool), task.make, task.arguments, _batch(task))
            note(where, task.target.directory.name, task.pool, rate)
            known[key] = asdict(rate)
        found[task.name] = known[key]["rows_per_second"]
    return found


def _batch(task: Task) -> dict[str, pa.Table]:
    """The first rows that the task is made from, of a part that has some."""
    name, first = next(iter(task.sources.items()))
    numbers = first.parts()
    part = next((number for number in numbers if first.read(number).num_rows), numbers[0])
    tables = {source: table.read(part) for source, table in task.sources.items()}
    return tables | {name: tables[name].slice(0, task.pool.batch_size)}


def note(where: Run, fingerprint: str, pool: Pool, rate: Rate) -> None:
    """Keeps what was measured for a stage's fingerprint and its pool."""
    known = _known(where) | {_key(fingerprint, pool): asdict(rate)}
    write_atomically(where.root / _FILE, json.dumps(known, indent=2).encode())


def _known(where: Run) -> dict[str, dict[str, float]]:
    file = where.root / _FILE
    found: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
    return found


def _key(fingerprint: str, pool: Pool) -> str:
    """A rate holds for a fingerprint and for what an actor has, however many actors there are."""
    actor = json.dumps(pool.model_dump(exclude={"concurrency"}), sort_keys=True)
    return f"{fingerprint}-{hashlib.sha256(actor.encode()).hexdigest()[:8]}"
