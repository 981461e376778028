"""Streams the parts of tables through pools of Ray Data actors, one pool per job, side by side.

No pool waits for another. A part that is already in a job's target is passed by, so an interrupted pass goes on where
it stopped; an actor or a node that dies costs the part that it was at. A part's rows are the same whoever makes it and
whenever.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from carevl.cluster.actors import PoolActor, Preparer
from carevl.cluster.deaths import forget_loads
from carevl.cluster.jobs import PoolJob, Tally
from carevl.cluster.resources import Resources, list_nodes
from carevl.cluster.sizing import limit_preparers, share_actors
from carevl.cluster.watch import PoolWatch, read_ahead, refuse_stall, watch_silence
from carevl.errors import MachineError
from carevl.store.run import RunError

_log = logging.getLogger(__name__)

_IN_FLIGHT = 2
"""Parts that an actor has at a time: one that it works on and one that waits for it."""


def run_jobs(
    jobs: Sequence[PoolJob],
    parts: Sequence[int],
    max_error_fraction: float,
    on_progress: Callable[[str, Tally, int], None],
    *,
    rates: Mapping[str, float] | None = None,
    nodes: Sequence[Resources] | None = None,
    stall_seconds: float = 6 * 3600,
) -> dict[str, Tally]:
    """Run every job over every part and return what each did.

    Args:
        parts: numbers of the parts to make, for jobs that name none of their own.
        max_error_fraction: share of a job's rows that may carry an error.
        on_progress: called with (job, what it has done, number of parts) after each part, and when none comes for long.
        rates: rows per second of an actor of each job, for pools of size `auto`; all alike where it is absent.
        nodes: those that actors can be on, for pools of size `auto`; the nodes of the cluster when absent.
        stall_seconds: time in which no part of any job is made until all are given up.

    Raises:
        RunError: an actor met what a person has to mend, or more rows failed than allowed; what is done stays.
        MachineError: an actor met a full disk, or what else the machine is to blame for; or nothing is made any more.
    """
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "ray.data._internal.progress"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what goes wrong is raised, too
    attempt = uuid.uuid4().hex
    jobs = [replace(job, attempt=attempt, parts=tuple(parts) if job.parts is None else job.parts) for job in jobs]
    for job in jobs:
        forget_loads(job.target.directory)
    jobs = _size_pools(jobs, rates or {}, list_nodes() if nodes is None else nodes)
    pools = {job.name: PoolWatch(job.pool, len(job.parts or ())) for job in jobs}

    def report(name: str) -> None:
        on_progress(name, pools[name].tally, pools[name].n_parts)

    stream, *others = map(_stream, jobs)
    stream = stream.union(*others) if others else stream
    stopped: dict[str, str] = {}
    is_machine = False
    with watch_silence(report, pools), _explain_lost_ray():
        for row in read_ahead(stream.iter_rows, lambda: refuse_stall(pools, stall_seconds)):
            if row["stopped"]:
                stopped.setdefault(row["job"], row["stopped"])
                is_machine |= bool(row["machine"])
                continue
            pools[row["job"]].record(row)
            report(row["job"])
    if stopped:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in stopped.items())
        kind = MachineError if is_machine else RunError
        raise kind(f"{reasons}; the parts that are done stay: mend this, and run the same command again")
    tallies = {name: pool.tally for name, pool in pools.items()}
    for name, tally in tallies.items():
        if tally.errors > max_error_fraction * tally.rows_out:
            raise RunError(
                f"{name}: {tally.errors} of {tally.rows_out} rows failed, more than "
                f"max_error_fraction = {max_error_fraction:.1%} allows; rows and errors are kept, and "
                "`carevl retry` tries those rows again"
            )
    return tallies


@contextmanager
def _explain_lost_ray() -> Iterator[None]:
    """Say that Ray has lost what the pools run on; what their own code raises stays as it is.

    Raises:
        MachineError: that is so.
    """
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError:
        raise
    except RayError as error:
        problem = " ".join(str(error).split())[:300]
        raise MachineError(
            f"Ray has lost actors or their node: {problem}; finished parts stay: run it again"
        ) from error


def _size_pools(jobs: Sequence[PoolJob], rates: Mapping[str, float], nodes: Sequence[Resources]) -> list[PoolJob]:
    """Set the numbers of preparers, and of actors where those are `auto`; arguments as for `run_jobs`."""
    n_parts = max(len(job.parts or ()) for job in jobs)
    pools = {job.name: job.pool for job in jobs}
    actors, ahead = share_actors(pools, n_parts, rates, nodes), limit_preparers(pools, n_parts, nodes)
    sized = []
    for job in jobs:
        if ahead[job.name] < min(job.pool.preparers, n_parts):
            _log.warning("%s: room for %d of %d preparers", job.name, ahead[job.name], job.pool.preparers)
        sizes = {"preparers": ahead[job.name]} | ({"concurrency": actors[job.name]} if job.pool.auto else {})
        sized.append(replace(job, pool=job.pool.model_copy(update=sizes)))
    return sized


def _stream(job: PoolJob) -> Any:
    """Return a dataset of a row per part that has gone through the job's pool."""
    import ray

    parts = job.parts or ()
    low, high = job.pool.bounds
    stream = ray.data.from_items([{"part": number} for number in parts], override_num_blocks=len(parts))
    if job.processor.has_preprocess and job.pool.preparers and not job.retry:
        stream = stream.map_batches(
            Preparer,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=job.pool.preparers),
            num_cpus=1,
        )
    return stream.map_batches(
        PoolActor,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=low, max_size=high, max_tasks_in_flight_per_actor=_IN_FLIGHT),
        num_cpus=job.pool.num_cpus,
        num_gpus=job.pool.num_gpus or None,
        resources=job.pool.resources or None,
    )
