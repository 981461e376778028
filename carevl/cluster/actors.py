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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from carevl.cluster.earlier_rows import Part
from carevl.cluster.jobs import PoolJob, Processor, Tally, check_keys, unique_keys
from carevl.errors import UserError
from carevl.models.device import reserve_device
from carevl.models.engines import close_engines
from carevl.models.engines.parity import keep_references
from carevl.models.fallbacks import collect_fallbacks
from carevl.models.row_errors import BROKEN, EngineLostError, first_line, is_lost, is_out_of_memory, mark_lost_rows
from carevl.store.schemas import failures
from carevl.store.table import write_atomically

_log = logging.getLogger(__name__)

_MOST_ENDS = 2
"""Times that a part may end the process of its actor; the next time, its rows carry the error."""

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
        if self.job.target.part(number).exists():
            return b""
        try:
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
    the part again.
    """

    def __init__(self, job: PoolJob) -> None:
        self.job, self.name = job, _actor_id()
        self.process = uuid.uuid4().hex
        self.loaded: Processor | None = None
        self.proven, self.is_lost = False, False
        self.load_seconds = 0.0
        self.fallbacks: list[str] = []
        self.stopped = ""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        [number] = batch["part"].tolist()
        [prepared], [prepare_seconds] = batch.get("prepared", [b""]), batch.get("prepare_seconds", [0.0])
        tally, ended = Tally(), self._ended(number)
        if self.is_lost:
            self._end_process()
        if not self.stopped:
            try:
                part = pickle.loads(prepared) if prepared else None
                tally = self._process_part(number, part, final=len(ended) >= _MOST_ENDS)
                tally.prepare_seconds = float(prepare_seconds)
            except EngineLostError as error:
                _log.error("%s: part %d: %s", self.job.name, number, error)
                if len(ended) < _MOST_ENDS:
                    write_atomically(self._note(number), "\n".join([*ended, self.process]).encode())
                    self._end_process()
                self.stopped = f"{error}; {len(ended)} processes in a row ended at part {number}"
            except (OSError, UserError) as error:
                self.stopped = " ".join(str(error).split())
            self._note(number).unlink(missing_ok=True)
        report = {"job": self.job.name, "actor": self.name, "processes": " ".join([*ended, self.process])}
        report |= {"tally": json.dumps(asdict(tally))}
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

    def _note(self, number: int) -> Path:
        """Return the file that names the processes that ended at a part."""
        return self.job.target.directory / f".ends-{number:05d}"

    def _ended(self, number: int) -> list[str]:
        note = self._note(number)
        return note.read_text().split() if note.exists() else []

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
            rows_out = self._complete(part, part.taken, part.left)
            target.write(number, rows_out)
            return rows_out
        stored = target.read(number, None if job.retry else ["error"])
        if not job.retry:
            return stored
        failed = _failed_keys(job, part.left, stored)
        if not len(failed):
            return stored
        name, first = next(iter(part.left.items()))
        again = {**part.left, name: first.filter(pc.is_in(first[job.key], failed))}
        rows_out = self._complete(part, stored.filter(pc.invert(pc.is_in(stored[job.key], failed))), again)
        target.write(number, rows_out)
        return rows_out

    def _complete(self, part: Part, kept: pa.Table | None, rows_in: Mapping[str, pa.Table]) -> pa.Table:
        """Return the rows that are kept with those that are made of `rows_in`, in the order of the input.

        Nothing is loaded where nothing is left to make.
        """
        if kept is None:
            return self._process(rows_in)
        made = [self._process(rows_in)] if len(unique_keys(self.job, rows_in)) else []
        return part.in_order(self.job, kept, *made)

    def _process(self, rows_in: Mapping[str, pa.Table]) -> pa.Table:
        """Return new rows. An engine that worked before and now fails on every row is loaded anew, once."""
        rows_out = self._load().process(rows_in)
        if self.proven and _all_broken(rows_out):
            _log.warning("%s: every row of a part failed; loading the engine anew", self.job.name)
            # The old engine has to be gone before the new one loads: a GPU need not hold both.
            self.close()
            rows_out = self._load().process(rows_in)
        check_keys(self.job, rows_in, rows_out)
        self.proven = self.proven or bool(rows_out["error"].null_count)
        return rows_out

    def _load(self) -> Processor:
        if self.loaded is None:
            started = time.monotonic()
            reserve_device(self.job.pool.num_gpus)
            try:
                with keep_references(self.job.target.directory), collect_fallbacks() as self.fallbacks:
                    self.loaded = self.job.processor.load()
            except Exception as error:
                _log.warning("%s cannot be loaded", self.job.name, exc_info=True)
                raise _load_error(error) from error
            self.load_seconds += time.monotonic() - started
        return self.loaded


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
