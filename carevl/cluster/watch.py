"""Watches pools at work: how much each has done, and whether its actors wait for parts or hang."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING, Any

from carevl.cluster.jobs import Tally
from carevl.errors import MachineError
from carevl.periodic import call_every

if TYPE_CHECKING:
    from carevl.settings.models import Pool

_INTERVAL = 10.0
"""Seconds between two looks at pools that report nothing."""


class PoolWatch:
    """The tally of a pool at work, and whether its actors wait or hang."""

    def __init__(self, pool: Pool, n_parts: int) -> None:
        self.tally, self.n_parts = Tally(), n_parts
        self.min_actors = min(pool.bounds[0], n_parts)
        self.actors: dict[str, set[str]] = {}
        """Each actor, with the processes that it has had."""
        self.last_report = time.monotonic()
        self.longest_part = 0.0
        self.first_start: float | None = None

    def record(self, report: Mapping[str, Any]) -> None:
        """Count the part that an actor reports."""
        tally, now = Tally(**json.loads(report["tally"])), time.monotonic()
        seconds = tally.busy_seconds + tally.load_seconds
        self.first_start = now - seconds if self.first_start is None else min(self.first_start, now - seconds)
        self.longest_part = max(self.longest_part, seconds)
        self.actors.setdefault(report["actor"], set()).update(report["processes"].split())
        self.last_report = now
        self.tally.add(tally)
        self.tally.actors = max(len(self.actors), self.min_actors)
        self.tally.actor_seconds = self.tally.actors * (now - self.first_start)
        self.tally.restarts = sum(len(processes) - 1 for processes in self.actors.values())
        restarts = f"{self.tally.restarts} restarts of its actors" if self.tally.restarts else ""
        self.tally.trouble = "; ".join(filter(None, (restarts, self._starvation())))

    def check_silence(self) -> bool:
        """Return whether no part has come for far longer than any took so far, or for a minute before the first."""
        seconds = time.monotonic() - self.last_report
        if self.tally.parts == self.n_parts or seconds < max(60.0, 3 * self.longest_part):
            return False
        if self.actors:
            self.tally.trouble = f"stalls: no part for {seconds:.0f} s, none took over {self.longest_part:.0f} s"
        else:
            self.tally.trouble = f"no part yet after {seconds:.0f} s: its actors load their model, or wait for room"
        return True

    def _starvation(self) -> str:
        settled = self.tally.parts >= 2 * self.tally.actors and self.tally.actor_seconds > 5 * self.tally.actors
        if not settled or self.tally.busy_share >= 0.5:
            return ""
        return f"starves: its actors are busy {self.tally.busy_share:.0%} of the time"


def refuse_stall(pools: Mapping[str, PoolWatch], seconds: float) -> None:
    """Give pools up of which none has made a part for so long.

    Raises:
        MachineError: that is so; it names those that are not done.
    """
    last = max(pool.last_report for pool in pools.values())
    if (silent := time.monotonic() - last) > seconds:
        names = [
            f"{name} ({pool.tally.parts} of {pool.n_parts} parts are made)"
            for name, pool in pools.items()
            if pool.tally.parts < pool.n_parts
        ]
        raise MachineError(
            f"{', '.join(names)}: no part for {silent / 3600:.1f} hours, so it is given up (cluster.stall_hours); its "
            "actors hang, or wait for a node that does not come"
        )


def read_ahead(read: Callable[[], Iterable[Any]], check: Callable[[], None]) -> Iterator[Any]:
    """Yield what is read in a thread of its own, and check now and then while nothing comes: it may never return."""
    rows: Queue[tuple[str, Any]] = Queue()

    def fetch() -> None:
        try:
            for row in read():
                rows.put(("row", row))
            rows.put(("end", None))
        except BaseException as error:
            rows.put(("error", error))

    Thread(target=fetch, daemon=True).start()
    while True:
        try:
            kind, value = rows.get(timeout=_INTERVAL)
        except Empty:
            check()
            continue
        if kind == "error":
            raise value
        if kind == "end":
            return
        yield value


@contextmanager
def watch_silence(on_silence: Callable[[str], None], pools: Mapping[str, PoolWatch]) -> Iterator[None]:
    """Look at the pools now and then; call `on_silence` with the name of each of which nothing has come for long."""

    def look() -> None:
        for name, pool in pools.items():
            if pool.check_silence():
                on_silence(name)

    with call_every(_INTERVAL, look):
        yield
