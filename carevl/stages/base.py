"""What every stage is handed: settings, the run's tables, the pools, and a way to tell how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from carevl.cluster.jobs import PoolJob, Tally
from carevl.cluster.pools import run_jobs
from carevl.cluster.resources import supply
from carevl.store.ingested import Ingested
from carevl.store.run import Run
from carevl.store.stage_key import StageKey
from carevl.store.table import Table

if TYPE_CHECKING:
    from carevl.settings import Settings
    from carevl.training.progress import Progress

Counts = Mapping[str, Mapping[str, Any]]
"""Stage to what its manifest says of its rows: rows_in, rows_out, errors, and facts of its own."""


@dataclass
class Context:
    """A run at work."""

    settings: Settings
    where: Run
    causes: Mapping[str, StageKey]
    say: Callable[[str], None]
    told: dict[str, float] = field(default_factory=dict)
    retry: bool = False
    """Whether pools make the rows anew that failed in them, and no others."""

    def table(self, stage: str, *below: str) -> Table:
        """A stage's table, or one of several below it."""
        return Table(self.where.table(self.causes[stage]).directory.joinpath(*below))

    @property
    def ingested(self) -> Ingested:
        """Images and items."""
        return Ingested(self.table("ingest").directory)

    def pools(
        self, jobs: Sequence[PoolJob], parts: Sequence[int] | None = None, rates: Mapping[str, float] | None = None
    ) -> Counts:
        """Runs jobs side by side over the given parts, or over every part of the items.

        Args:
            rates: rows per second of an actor of each job; they matter to pools of size `auto` only.
        """
        numbers = self.ingested.items.parts() if parts is None else parts
        nodes = supply(self.settings.cluster, []).nodes
        allowed = self.settings.max_error_fraction
        jobs = [replace(job, retry=self.retry) for job in jobs]
        tallies = run_jobs(jobs, numbers, allowed, self.progress(), rates=rates, nodes=nodes)
        return {name: tally.facts() for name, tally in tallies.items()}

    def progress(self) -> Callable[[str, Tally, int], None]:
        """What tells of pools at work, at most once a second for each: rows, rate, errors, time left."""
        started = time.monotonic()

        def tell(name: str, tally: Tally, n_parts: int) -> None:
            elapsed = max(time.monotonic() - started, 1e-6)
            if self._silent(name, last=tally.parts == n_parts):
                return
            end = f"done in {elapsed:.0f} s"
            if tally.parts < n_parts:
                end = f"{elapsed / tally.parts * (n_parts - tally.parts):.0f} s left" if tally.parts else "begins"
            rate = tally.rows_out / elapsed
            done = f"{tally.rows_out:7d} rows  {rate:8.1f} rows/s  {tally.errors} errors  {end}"
            self.say(f"{name:16s} {done}" + (f"  {tally.trouble}" if tally.trouble else ""))

        return tell

    def training(self, stage: str) -> Callable[[Progress], None]:
        """What tells of a training's steps."""

        def progress(told: Progress) -> None:
            self.say(f"{stage:16s} {told.line()}")

        return progress

    def _silent(self, name: str, *, last: bool) -> bool:
        """Whether a line of this name was said less than a second ago; the last one is always said."""
        now = time.monotonic()
        if now - self.told.get(name, 0.0) < 1 and not last:
            return True
        self.told[name] = now
        return False
