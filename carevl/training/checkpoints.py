"""Checkpoints on disk: each appears whole, by rename, and the last few are kept.

`checkpoints/step-00000050/` holds the state after 50 steps. Worker 0 names, renames and removes; the others only write
their part.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from carevl.errors import UserError
from carevl.periodic import call_every
from carevl.training.steps import all_gather

if TYPE_CHECKING:
    from carevl.training.loop import Loop

_PATTERN = "step-*"
_ASIDE, _PROBLEM = "damaged-", "problem.txt"


class NoRoomError(OSError):
    """A checkpoint that was not begun, as the disk has no room for it; raised on all workers at once."""


class Checkpoints:
    """The checkpoints of a training in a directory that all its workers see."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory, self.keep = directory, keep

    def steps(self) -> list[int]:
        """Return the steps done at each whole checkpoint, ascending."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.directory.glob(_PATTERN))

    def restore(self, loop: Loop) -> int:
        """Bring every worker back to the last checkpoint; return the steps done, 0 when there is none."""
        if loop.rank == 0:
            self._remove_unfinished()
        while True:
            # Worker 0 alone decides: a file system may show others a directory later, and all have to take the same.
            last: int | None = all_gather(self.steps()[-1] if self.steps() else None, loop.world)[0]
            if last is None:
                return 0
            if self.load(loop, last):
                return last

    def load(self, loop: Loop, steps_done: int) -> bool:
        """Go back to one checkpoint; return whether it was whole: else it is put aside, and nothing changes."""
        path = self._path(steps_done)
        problem = loop.find_problem(path)
        if problem is None:
            loop.load(str(path))
        elif loop.rank == 0 and path.is_dir():
            aside = self._path(steps_done, _ASIDE)
            shutil.rmtree(aside, ignore_errors=True)
            (path / _PROBLEM).write_text(problem)
            path.replace(aside)
        all_gather(None, loop.world)  # nobody looks for the next one before this one is away
        return problem is None

    def save(self, loop: Loop, steps_done: int, best: int | None = None) -> None:
        """Write a checkpoint; every worker has to call it. When it fails, those that were there stay as they are.

        Args:
            best: steps done at a checkpoint that is kept however old it is.

        Raises:
            NoRoomError: the disk has not the room that the last one took; every worker raises it.
            OSError, RuntimeError: a worker could not write its part, for example because the disk is full.
        """
        if all_gather(loop.rank == 0 and self._lacks_room(), loop.world)[0]:
            raise NoRoomError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.directory))
        unfinished = self._path(steps_done, ".unfinished-")
        try:
            loop.save(str(unfinished), steps_done)
            if loop.rank == 0:
                _flush(unfinished)  # onto the disk before the rename makes it the one to go on from
                whole = self._path(steps_done)
                shutil.rmtree(whole, ignore_errors=True)
                unfinished.replace(whole)
        except (OSError, RuntimeError):
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        if loop.rank == 0:
            for old in self.steps()[: -self.keep]:
                if old != best:
                    shutil.rmtree(self._path(old))
        all_gather(None, loop.world)  # nobody goes on before the checkpoint is whole

    def _lacks_room(self) -> bool:
        """Return whether the disk has less room than the last checkpoint takes."""
        if not (steps := self.steps()):
            return False
        files = [file for file in self._path(steps[-1]).rglob("*") if file.is_file()]
        return shutil.disk_usage(self.directory).free < sum(file.stat().st_size for file in files)

    def _path(self, steps_done: int, prefix: str = "") -> Path:
        return self.directory / f"{prefix}step-{steps_done:08d}"

    def _remove_unfinished(self) -> None:
        """Remove what a killed worker was writing."""
        for path in self.directory.glob(f".unfinished-{_PATTERN}"):
            shutil.rmtree(path)


def _flush(directory: Path) -> None:
    for file in directory.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


@contextmanager
def report_damaged(directory: Path, log: Callable[[str], None] | None) -> Iterator[None]:
    """Log every checkpoint that is put aside meanwhile, within seconds."""
    if log is None:
        yield
        return
    reported = {path.name for path in directory.glob(f"{_ASIDE}{_PATTERN}")}

    def look() -> None:
        for path in sorted(directory.glob(f"{_ASIDE}{_PATTERN}")):
            if path.name not in reported and log is not None:
                reported.add(path.name)
                steps = int(path.name.rpartition("-")[2])
                log(f"the checkpoint of step {steps} is put aside as {path}: {(path / _PROBLEM).read_text()}")

    try:
        with call_every(3.0, look):
            yield
    finally:
        look()


@contextmanager
def exclusive_lock(out: Path, patience: float = 120.0) -> Iterator[None]:
    """Hold `out` for one training; the worker of a driver that was killed may need some seconds to let it go.

    Raises:
        UserError: another training holds it for more than `patience` seconds.
    """
    with (out / "training.lock").open("w") as stream:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(f"another training writes to {out}; wait for it, or end it") from None
                time.sleep(0.2)
        yield
