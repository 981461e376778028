"""The Ray Data actors of a pool: those that process parts, and preparers that make parts ready for them."""

from __future__ import annotations

import gc
import json
import logging
import os
import pickle
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from carevl.cluster.deaths import MOST, Notes, Split, forget_part, is_split, select
from carevl.cluster.earlier_rows import Part
from carevl.cluster.jobs import PoolJob, Processor, Tally, check_keys, unique_keys
from carevl.errors import MachineError, UserError, as_user_error, exit_status
from carevl.models.device import reserve_device
from carevl.models.engines import close_engines
from carevl.models.engines.parity import keep_references
from carevl.models.fallbacks import collect_fallbacks
from carevl.models.row_errors import (
    ACTOR_DIED,
    BROKEN,
    EngineLostError,
    Failure,
    fail_rows,
    first_line,
    is_lost,
    is_out_of_memory,
    mark_lost_rows,
)
from carevl.store.run import RunError
from carevl.store.schemas import ERROR, failures, row_error

_log = logging.getLogger(__name__)

_MOST_LOST = 2
"""Times that the engine may be lost at a part; the next time, its rows carry the error."""

_MAX_PREPARED = 2**30
"""Bytes of a part that a preparer hands over at most; the actors make larger ones ready themselves."""


class Preparer:
    """Reads parts and preprocesses them, ahead of the actors of a job.

    What goes wrong here is left to the actor, which reads the part itself and meets it again.
    """

    def __init__(self, job: PoolJob) -> None:
        self.job = job

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        prepared = self._prepare(*batch["part"].tolist())
        seconds = np.array([time.monotonic() - started])
        return {**batch, "prepared": np.array([prepared], dtype=object), "prepare_seconds": seconds}

    def _prepare(self, number: int) -> bytes:
        """Return a `Part`, pickled; empty where the actor has to read them itself."""
        notes, name = _notes(self.job, uuid.uuid4().hex), f"{_name(number)}-prepare"
        if self.job.target.part(number).exists() or notes.processes(name):
            return b""
        try:
            with notes.watch(name):
                part = Part.read(self.job, number)
                prepared = pickle.dumps(replace(part, left=dict(self.job.processor.preprocess(part.left))), protocol=5)
        except (OSError, UserError, ValueError):
            _log.warning("%s: part %d is left to the actor", self.job.name, number, exc_info=True)
            return b""
        return prepared if len(prepared) < _MAX_PREPARED else b""


class PoolActor:
    """A job's processor inside a Ray Data actor; it loads nothing before the first part that needs it.

    What a person has to mend, such as a full disk, or a model that cannot be loaded, stops the actor: it reports why
    and makes no further part. An engine that is beyond repair in this process ends it; Ray starts another, which makes
    the part again. A part at which process after process dies is made in pieces.
    """

    def __init__(self, job: PoolJob) -> None:
        self.job, self.name = job, _actor_id()
        self.process = uuid.uuid4().hex
        self.notes = _notes(job, self.process)
        self.loaded: Processor | None = None
        self.proven, self.is_lost = False, False
        self.load_seconds = 0.0
        self.fallbacks: list[str] = []
        self.stopped, self.is_machine = "", False

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        [number] = batch["part"].tolist()
        [prepared], [prepare_seconds] = batch.get("prepared", [b""]), batch.get("prepare_seconds", [0.0])
        tally, ended, lost = Tally(), self.notes.processes(_name(number)), self.notes.lost(_name(number))
        if self.is_lost:
            self._end_process()
        if not self.stopped:
            try:
                # What is prepared, such as tokens, belongs to all rows together.
                part = pickle.loads(prepared) if prepared and not self._is_split(number) else None
                tally = self._process_part(number, part, final=lost >= _MOST_LOST)
                tally.prepare_seconds = float(prepare_seconds)
                forget_part(self.job.target.directory, _name(number))
            except EngineLostError as error:
                _log.error("%s: part %d: %s", self.job.name, number, error)
                if lost < _MOST_LOST:
                    self._end_process()
                self.stopped = f"{error}; {len(ended)} processes in a row ended at part {number}"
                self.notes.forget(_name(number))
            except (OSError, UserError) as error:
                problem = as_user_error(error) if isinstance(error, OSError) else error
                self.stopped, self.is_machine = " ".join(str(problem).split()), exit_status(error) == 3
        report: dict[str, Any] = {
            "job": self.job.name,
            "actor": self.name,
            "processes": " ".join([*ended, self.process]),
        }
        report |= {"tally": json.dumps(asdict(tally)), "machine": self.is_machine}
        return {name: np.array([value]) for name, value in {**report, "stopped": self.stopped}.items()}

    def __del__(self) -> None:
        """Close the engine: Ray drops an actor that has no more parts before it ends its process."""
        self.close()

    def close(self) -> None:
        """Close and drop what was loaded, and give its memory back."""
        close_engines()
        self.loaded, self.proven = None, False
        gc.collect()
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()

    def _end_process(self) -> NoReturn:
        """End this process at once: its engine is lost, and what it holds goes with it."""
        logging.shutdown()
        os._exit(1)

    def _process_part(self, number: int, prepared: Part | None, *, final: bool) -> Tally:
        """Make a part; the last time that it may be tried, rows carry the error of an engine that is lost."""
        started, self.load_seconds = time.monotonic(), 0.0
        part = prepared or Part.read(self.job, number)
        if not final:
            rows_out = self._ensure_part(number, part)
        else:
            with mark_lost_rows() as lost:
                rows_out = self._ensure_part(number, part)
            self.is_lost = lost.is_lost
        busy = time.monotonic() - started - self.load_seconds
        return Tally(
            parts=1,
            rows_in=len(part.keys),
            rows_out=len(rows_out),
            rows_taken=part.rows_taken,
            errors=failures(rows_out["error"]),
            busy_seconds=busy,
            load_seconds=self.load_seconds,
            fallbacks=self.fallbacks,
        )

    def _ensure_part(self, number: int, part: Part) -> pa.Table:
        """Return a part's rows; write them if they are not stored yet, or, on a retry, if some of them failed."""
        target, job = self.job.target, self.job
        if not target.is_made(number):
            rows_out = self._complete(number, part, part.taken, part.left)
            target.write(number, rows_out)
            return rows_out
        stored = target.read(number, None if job.retry else ["error"])
        if not job.retry:
            return stored
        failed = _failed_keys(job, part.left, stored)
        if not len(failed):
            return stored
        kept = stored.filter(pc.invert(pc.is_in(stored[job.key], failed)))
        rows_out = self._complete(number, part, kept, select(part.left, job.key, failed))
        target.write(number, rows_out)
        return rows_out

    def _complete(self, number: int, part: Part, kept: pa.Table | None, rows_in: Mapping[str, pa.Table]) -> pa.Table:
        """Return the rows that are kept with those that are made of `rows_in`, in the order of the input.

        Nothing is loaded where nothing is left to make.
        """
        if kept is None:
            return self._process(number, rows_in)
        made = [self._process(number, rows_in)] if len(unique_keys(self.job, rows_in)) else []
        return part.in_order(self.job, kept, *made)

    def _process(self, number: int, rows_in: Mapping[str, pa.Table]) -> pa.Table:
        """Return new rows, made at once, or in pieces where process after process has died at them."""
        self._load()
        part = _name(number)
        keys = unique_keys(self.job, rows_in).to_pylist()
        if not self._is_split(number):
            with self.notes.watch(part):
                return self._process_rows(rows_in)
        _log.warning("%s: part %d is made in pieces: processes died at it", self.job.name, number)
        split = Split(
            self.notes,
            part,
            lambda some: self._process_rows(select(rows_in, self.job.key, some)),
            lambda some, times: self._fail(part, select(rows_in, self.job.key, some), times),
        )
        return split.make(keys)

    def _is_split(self, number: int) -> bool:
        """Return whether a part is made in pieces: enough processes have died at it, or some pieces are there."""
        died = len(self.notes.processes(_name(number)))
        return died >= MOST or is_split(self.job.target.directory, _name(number))

    def _fail(self, part: str, rows_in: Mapping[str, pa.Table], times: int) -> pa.Table:
        """Return rows that carry the error of the processes that died at them, without any work on them.

        Raises:
            MachineError: processes die at them all the same.
        """
        name, first = next(iter(rows_in.items()))
        note = f"{part}-failing"
        if (died := self.notes.count(note)) > 1:
            keys = ", ".join(first[self.job.key].to_pylist()[:3])
            raise MachineError(f"a process dies even where it passes {keys} by; leave that out of the sources")
        message = f"{times} processes died at it, mostly for lack of memory or by a crash in a library"
        with self.notes.watch(note):
            if "error" in first.column_names and not died:
                error = row_error(self.job.name.split("/")[0], ACTOR_DIED, message)
                place = first.column_names.index("error")
                marked = first.set_column(place, "error", pa.array([error] * len(first), ERROR))
                with suppress(RunError):  # a processor may leave rows out that have an error
                    return self._process_rows({**rows_in, name: marked}, rows_in)
            with fail_rows(Failure(ACTOR_DIED, message)):
                return self._process_rows(rows_in)

    def _process_rows(
        self, rows_in: Mapping[str, pa.Table], expected: Mapping[str, pa.Table] | None = None
    ) -> pa.Table:
        """Return new rows. An engine that worked before and now fails on every row is loaded anew, once.

        Args:
            expected: the input whose keys have to come out; that which goes in when None.
        """
        rows_out = self._load().process(rows_in)
        if self.proven and _all_broken(rows_out):
            _log.warning("%s: every row of a part failed; loading the engine anew", self.job.name)
            # The old engine has to be gone before the new one loads: a GPU need not hold both.
            self.close()
            rows_out = self._load().process(rows_in)
        check_keys(self.job, expected or rows_in, rows_out)
        self.proven = self.proven or bool(rows_out["error"].null_count)
        return rows_out

    def _load(self) -> Processor:
        if self.loaded is None:
            started, name = time.monotonic(), f"load-{self.name}"
            if (died := len(self.notes.processes(name))) >= MOST:
                raise UserError(
                    f"cannot be loaded: {died} processes died while they loaded it, mostly for lack of memory; "
                    "choose a smaller model, fewer actors (pool.concurrency), or a larger machine"
                )
            reserve_device(self.job.pool.num_gpus)
            try:
                with (
                    self.notes.watch(name),
                    keep_references(self.job.target.directory),
                    collect_fallbacks() as self.fallbacks,
                ):
                    self.loaded = self.job.processor.load()
            except Exception as error:
                _log.warning("%s cannot be loaded", self.job.name, exc_info=True)
                raise _load_error(error) from error
            self.load_seconds += time.monotonic() - started
        return self.loaded


def _name(number: int) -> str:
    """Return the name of a part in notes."""
    return f"{number:05d}"


def _notes(job: PoolJob, process: str) -> Notes:
    """Return the notes that a process of a job leaves."""
    import ray

    def find_nodes() -> set[str]:
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}

    node = ray.get_runtime_context().get_node_id()
    return Notes(job.target.directory, job.attempt, process, node, find_nodes)


def _actor_id() -> str:
    """Return the name of the actor that this process is; Ray starts another process under it when one ends."""
    import ray

    return str(ray.get_runtime_context().get_actor_id())


def _load_error(error: Exception) -> Exception:
    """Return what stops an actor whose model cannot be loaded: what happened, and the likely way out."""
    if is_lost(error):
        return EngineLostError(f"cannot be loaded: {first_line(error)}")
    if isinstance(error, (OSError, UserError)):
        return error
    text = str(error) if isinstance(error, ValueError) else first_line(error)  # so engines refuse settings
    advice = ""
    if is_out_of_memory(error) or "cache blocks" in text or "ree memory" in text:
        advice = "; it lacks memory: lower max_num_seqs or max_model_len, or reserve more of a GPU (pool.num_gpus)"
    elif isinstance(error, ImportError):
        advice = "; install it on every node"
    return UserError(f"cannot be loaded: {text.strip().rstrip('.')}{advice}")


def _failed_keys(job: PoolJob, rows_in: Mapping[str, pa.Table], stored: pa.Table) -> pa.Array:
    """Return the keys of the rows that failed in this job, although what came in was good."""
    first = next(iter(rows_in.values()))
    good = set(first.filter(pc.is_null(first["error"]))[job.key].to_pylist())
    return pa.array(sorted(good & set(stored.filter(pc.is_valid(stored["error"]))[job.key].to_pylist())), pa.string())


def _all_broken(rows: pa.Table) -> bool:
    """Whether no row is good and the engine is why for one of them at least."""
    errors = rows["error"]
    return bool(len(rows)) and not errors.null_count and any(error["kind"] == BROKEN for error in errors.to_pylist())
