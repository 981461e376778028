"""A training that is interrupted: its workers are told by a file, and have some seconds to write a checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from carevl.training.steps import all_gather

Result = TypeVar("Result")
LIMIT = 20.0
"""Seconds that workers have for the step that they are at and a checkpoint; Slurm and Kubernetes kill after 30."""


def stop_file(out: Path) -> Path:
    """Return the file that asks the workers of a training to stop."""
    return out / ".stop"


def run_interruptible(
    fit: Callable[[], Result], out: Path, look: Callable[[], None] = lambda: None, every: float = 20.0
) -> Result:
    """Return what a training returns. It runs in a thread of its own, as Ray Train answers Ctrl-C in its own way.

    An interrupt of the main thread tells the workers to write a checkpoint, waits for that, and goes on its way. No
    other thread has interrupts.

    Args:
        look: called every so many seconds meanwhile; what it raises ends the wait.
    """
    stop_file(out).unlink(missing_ok=True)
    ended: Future[Result] = Future()

    def run() -> None:
        try:
            ended.set_result(fit())
        except BaseException as error:
            ended.set_exception(error)

    try:
        threading.Thread(target=run, daemon=True).start()
        while not wait([ended], every).done:
            look()
        return ended.result()
    except KeyboardInterrupt:
        with suppress(OSError):
            stop_file(out).touch()
            wait([ended], LIMIT)
        raise


def is_asked_to_stop(out: Path, rank: int, world: int) -> bool:
    """Return whether the workers of a training shall stop; all have to ask, and get the same answer."""
    return bool(all_gather(rank == 0 and stop_file(out).exists(), world)[0])
