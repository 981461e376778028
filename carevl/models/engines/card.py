"""The card that an engine starts on: what it is, one start at a time, and room to start in.

Engines that share a card measure its free memory while they start, so that two that start together count each other's.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from carevl.errors import UserError
from carevl.models.device import device

_log = logging.getLogger(__name__)

GIB = 2**30
CONTEXT = 3 * GIB // 2
"""Bytes that a process takes of a card besides weights, activations and cache: CUDA's context, libraries, graphs."""
_PATIENCE = 120.0
"""Seconds that memory is waited for, from when it last became more."""


@dataclass(frozen=True)
class Card:
    """A GPU: its name and its memory in bytes."""

    name: str
    total_bytes: int


def find_card() -> Card | None:
    """Return the GPU that this process computes on; None on a CPU."""
    import torch

    if device() == "cpu":
        return None
    properties = torch.cuda.get_device_properties(0)
    return Card(properties.name, properties.total_memory)


def free_bytes(count: int = 1) -> list[int]:
    """Return the free memory of the first `count` GPUs that torch sees."""
    import torch

    return [torch.cuda.mem_get_info(index)[0] for index in range(count)]


def device_names(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the names of the devices that Ray reserved for this process; none where none is."""
    names = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return sorted({name.strip() for name in names} - {"", "-1", "NoDevFiles"})


@contextmanager
def start_alone(devices: Sequence[str], directory: Path | None = None) -> Iterator[None]:
    """Hold the right to start an engine on these devices; the operating system gives it back when the process ends.

    Args:
        directory: where the locks are; a private one of this user and machine when None.
    """
    directory = directory or _private_directory()
    streams = []
    try:
        for name in sorted(devices):  # in one order, so that no two processes wait for each other
            stream = (directory / f"start-{re.sub(r'[^A-Za-z0-9-]', '-', name)}.lock").open("w")
            streams.append(stream)
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _log.warning("another engine starts on GPU %s; waiting for it", name)
                fcntl.flock(stream, fcntl.LOCK_EX)
        yield
    finally:
        for stream in streams:
            stream.close()


def _private_directory() -> Path:
    directory = Path(tempfile.gettempdir()) / f"carevl-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise UserError(f"{directory} belongs to somebody else, or others may write there; remove it, or set TMPDIR")
    return directory


def wait_for_room(
    needed: int, read_free: Callable[[], Sequence[int]], *, patience: float = _PATIENCE, interval: float = 1.0
) -> None:
    """Wait until every card has the memory that an engine needs, and no neighbour lets go of any more.

    Args:
        needed: bytes.
        read_free: returns the free bytes of each card.
        patience: seconds to wait from when there last became more.
        interval: seconds between two looks.

    Raises:
        UserError: there is less, and it does not become more.
    """
    free = min(read_free())
    last_gain, is_told = time.monotonic(), False
    while True:
        time.sleep(interval)
        before, free = free, min(read_free())
        if free > before + GIB // 64:
            last_gain = time.monotonic()
        elif free >= needed:
            return
        if time.monotonic() - last_gain > patience:
            raise UserError(
                f"the GPU has {free / GIB:.1f} GiB free, and this engine needs {needed / GIB:.1f}: another process "
                "holds the rest (nvidia-smi lists it); end it, or lower this pool's num_gpus"
            )
        if not is_told:
            _log.warning(
                "the GPU has %.1f GiB free of the %.1f that are needed; waiting for what another process lets go",
                free / GIB,
                needed / GIB,
            )
            is_told = True
