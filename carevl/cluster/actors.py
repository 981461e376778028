"""The Ray Data actors of a pool: those that process parts, and preparers that make parts ready for them."""

from __future__ import annotations

import json
import logging
import pickle
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from carevl.cluster.jobs import PoolJob, Processor, Tally, check_keys
from carevl.errors import UserError
from carevl.models.device import reserve_device
from carevl.models.row_errors import BROKEN
from carevl.store.schemas import failures

_log = logging.getLogger(__name__)

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
        """Return a part's tables, pickled; empty where the actor has to read them itself."""
        if self.job.target.part(number).exists():
            return b""
        try:
            tables = {name: table.read(number) for name, table in self.job.sources.items()}
            prepared = pickle.dumps(dict(self.job.processor.preprocess(tables)), protocol=5)
        except (OSError, UserError, ValueError):
            _log.warning("%s: part %d is left to the actor", self.job.name, number, exc_info=True)
            return b""
        return prepared if len(prepared) < _MAX_PREPARED else b""


class PoolActor:
    """A job's processor inside a Ray Data actor; it loads nothing before the first part that needs it.

    What a person has to mend, such as a full disk, stops the actor: it reports why and makes no further part.
    """

    def __init__(self, job: PoolJob) -> None:
        self.job, self.name = job, uuid.uuid4().hex
        self.loaded: Processor | None = None
        self.proven = False
        self.load_seconds = 0.0
        self.stopped = ""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        [number] = batch["part"].tolist()
        [prepared], [prepare_seconds] = batch.get("prepared", [b""]), batch.get("prepare_seconds", [0.0])
        tally = Tally()
        if not self.stopped:
            try:
                tally = self._process_part(number, pickle.loads(prepared) if prepared else None)
                tally.prepare_seconds = float(prepare_seconds)
            except (OSError, UserError) as error:
                self.stopped = " ".join(str(error).split())
        report = {"job": self.job.name, "actor": self.name, "tally": json.dumps(asdict(tally))}
        return {name: np.array([value]) for name, value in {**report, "stopped": self.stopped}.items()}

    def _process_part(self, number: int, prepared: Mapping[str, pa.Table] | None) -> Tally:
        started, self.load_seconds = time.monotonic(), 0.0
        rows_in = prepared or {name: table.read(number) for name, table in self.job.sources.items()}
        rows_out = self._ensure_part(number, rows_in)
        errors = failures(rows_out["error"])
        busy = time.monotonic() - started - self.load_seconds
        return Tally(1, next(iter(rows_in.values())).num_rows, len(rows_out), errors, busy, self.load_seconds)

    def _ensure_part(self, number: int, rows_in: Mapping[str, pa.Table]) -> pa.Table:
        """Return a part's rows; write them if they are not stored yet, or, on a retry, if some of them failed."""
        target, key = self.job.target, self.job.key
        if not target.part(number).exists():
            rows_out = self._process(rows_in)
            target.write(number, rows_out)
            return rows_out
        stored = target.read(number, None if self.job.retry else ["error"])
        if not self.job.retry:
            return stored
        failed = _failed_keys(self.job, rows_in, stored)
        if not len(failed):
            return stored
        name, first = next(iter(rows_in.items()))
        retried = self._process({**rows_in, name: first.filter(pc.is_in(first[key], failed))})
        rows_out = pa.concat_tables([stored.filter(pc.invert(pc.is_in(stored[key], failed))), retried])
        target.write(number, rows_out)
        return rows_out

    def _process(self, rows_in: Mapping[str, pa.Table]) -> pa.Table:
        """Return new rows. An engine that worked before and now fails on every row is loaded anew, once."""
        rows_out = self._load().process(rows_in)
        if self.proven and _all_broken(rows_out):
            _log.warning("%s: every row of a part failed; loading the engine anew", self.job.name)
            # The old engine has to be gone before the new one loads: a GPU need not hold both.
            self.loaded, self.proven = None, False
            rows_out = self._load().process(rows_in)
        check_keys(self.job, rows_in, rows_out)
        self.proven = self.proven or bool(rows_out["error"].null_count)
        return rows_out

    def _load(self) -> Processor:
        if self.loaded is None:
            started = time.monotonic()
            reserve_device(self.job.pool.num_gpus)
            try:
                self.loaded = self.job.processor.load()
            except ValueError as error:  # so engines refuse settings that do not suit a model
                _log.warning("%s cannot be loaded", self.job.name, exc_info=True)
                raise UserError(f"cannot be loaded: {error}") from error
            self.load_seconds += time.monotonic() - started
        return self.loaded


def _failed_keys(job: PoolJob, rows_in: Mapping[str, pa.Table], stored: pa.Table) -> pa.Array:
    """Return the keys of the rows that failed in this job, although what came in was good."""
    first = next(iter(rows_in.values()))
    good = set(first.filter(pc.is_null(first["error"]))[job.key].to_pylist())
    return pa.array(sorted(good & set(stored.filter(pc.is_valid(stored["error"]))[job.key].to_pylist())), pa.string())


def _all_broken(rows: pa.Table) -> bool:
    """Whether no row is good and the engine is why for one of them at least."""
    errors = rows["error"]
    return bool(len(rows)) and not errors.null_count and any(error["kind"] == BROKEN for error in errors.to_pylist())
