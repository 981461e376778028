"""How fast an actor of a pool is: its model loaded and timed on one batch of rows, where Ray would put it.

What was measured stays in the run directory (`rates.json`), so that `carevl plan --measure` serves the run after it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from carevl.cluster.resources import Resources, actor_resources
from carevl.errors import MachineError
from carevl.models.device import reserve_device
from carevl.store.damage import DamagedError, encode_json, read_json
from carevl.store.run import Run
from carevl.store.table import write_atomically

if TYPE_CHECKING:
    import pyarrow as pa

    from carevl.cluster.jobs import PoolJob, Processor
    from carevl.settings.models import Pool

FILE = "rates.json"
_TIMEOUT = 6 * 3600.0
"""Seconds that an actor has to find room, to load its model, and to process a batch."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rate:
    """The speed of one actor: seconds to load and for its first row, then rows per second."""

    load_seconds: float
    rows_per_second: float


def measure_rate(reservation: Resources, processor: Processor, tables: Mapping[str, pa.Table]) -> tuple[pa.Table, Rate]:
    """Load and process once, in a Ray task that reserves what an actor would; return the rows and the rate.

    Args:
        tables: the rows of the first are counted.
    """
    import ray

    def process() -> tuple[pa.Table, Rate]:
        started = time.monotonic()
        reserve_device(reservation["GPU"])
        loaded = processor.load()
        first = next(iter(tables))
        loaded.process({**tables, first: tables[first].slice(0, 1)})
        warm = time.monotonic()
        rows = loaded.process(tables)
        return rows, Rate(warm - started, max(len(tables[first]), 1) / (time.monotonic() - warm))

    custom = {name: amount for name, amount in reservation.items() if name not in ("CPU", "GPU")}
    # max_calls=1 ends the process with the task, so that its GPU is free for the actors to come.
    reserve = ray.remote(num_cpus=reservation["CPU"], num_gpus=reservation["GPU"], resources=custom, max_calls=1)
    try:
        measured: tuple[pa.Table, Rate] = ray.get(reserve(process).remote(), timeout=_TIMEOUT)
    except ray.exceptions.GetTimeoutError:
        raise MachineError(
            f"timing an actor has not ended in {_TIMEOUT / 3600:.0f} hours: it hangs, or waits for a node that does "
            "not come"
        ) from None
    return measured


def measure_rates(run: Run, jobs: Sequence[PoolJob], log: Callable[[str], None]) -> dict[str, float]:
    """Return rows per second of an actor of each job; measure on a batch of rows what is not stored yet."""
    stored = _load_rates(run)
    rates = {}
    for job in jobs:
        key = _key(job.target.directory.name, job.pool)
        if key not in stored:
            log(f"{job.name:16s} timing one actor, to find how many there should be")
            _, rate = measure_rate(actor_resources(job.pool), job.processor, _read_batch(job))
            store_rate(run, job.target.directory.name, job.pool, rate)
            stored[key] = asdict(rate)
        rates[job.name] = stored[key]["rows_per_second"]
    return rates


def _read_batch(job: PoolJob) -> dict[str, pa.Table]:
    """Return the first rows that the job is made from, of a part that has some."""
    name, first = next(iter(job.sources.items()))
    numbers = first.parts()
    part = next((number for number in numbers if first.read(number).num_rows), numbers[0])
    tables = {source: table.read(part) for source, table in job.sources.items()}
    return tables | {name: tables[name].slice(0, job.pool.batch_size)}


def store_rate(run: Run, fingerprint: str, pool: Pool, rate: Rate) -> None:
    """Keep what was measured for a stage's fingerprint and its pool."""
    rates = _load_rates(run) | {_key(fingerprint, pool): asdict(rate)}
    write_atomically(run.root / FILE, encode_json(rates))


def _load_rates(run: Run) -> dict[str, dict[str, float]]:
    file = run.root / FILE
    try:
        return read_json(file, "it is measured anew") if file.exists() else {}
    except DamagedError as error:
        _log.warning("%s", error)
        return {}


def _key(fingerprint: str, pool: Pool) -> str:
    """Name a rate: it holds for a fingerprint and the settings of an actor, however many actors there are."""
    actor = json.dumps(pool.model_dump(exclude={"concurrency"}), sort_keys=True)
    return f"{fingerprint}-{hashlib.sha256(actor.encode()).hexdigest()[:8]}"
