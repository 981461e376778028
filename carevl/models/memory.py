"""The memory that a model may still take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from carevl.models.device import device
from carevl.models.engines.card import free_bytes
from carevl.models.stored_weights import gigabytes, read_stored_weights

_SHARE = 0.8
"""Most of the free memory that weights may take; the rest is for what a try needs."""

_FILES = {
    "": ("memory.max", "memory.current", ""),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}
"""Of control groups of version 2 and 1: the files of the limit and of what is in use, and how statistics are named."""


def free_memory() -> int:
    """Return the bytes that a model may take up here: of main memory, where it is loaded, and of a GPU."""
    free = free_main_memory()
    return min(free, *free_bytes()) if device() == "cuda" else free


def find_lack(directory: Path, dtype: str) -> str | None:
    """Return why a model is not loaded here to be tried, as half a sentence; None where its weights leave it room.

    Args:
        dtype: format in which it would be loaded; `auto`: as it is stored.
    """
    needed, free = read_stored_weights(directory).loaded_as(dtype), free_memory()
    if needed <= _SHARE * free:
        return None
    return f"its weights take {gigabytes(needed)} as {dtype}, and {gigabytes(free)} of memory are free"


def free_main_memory(root: Path = Path("/")) -> int:
    """Return the bytes that this process may still take: of the machine, and of every control group that it is in.

    Pages of files that were read count as free, as they are given up for others.

    Args:
        root: the directory of `proc` and `sys`.
    """
    return min([_free_of_machine(root), *_free_of_groups(root)])


def _free_of_machine(root: Path) -> int:
    lines = (root / "proc/meminfo").read_text().splitlines()
    [kilobytes] = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(kilobytes)


def _free_of_groups(root: Path) -> Iterator[int]:
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in {*controllers.split(",")} & {*_FILES}:
            mount = root / "sys/fs/cgroup" / controller
            group = mount / path.lstrip("/")
            # In a container the path may be the one on its host, and the mount the container's own group.
            for directory in (group, *group.parents):
                if directory.is_relative_to(mount):
                    yield from _free_of_group(directory, *_FILES[controller])


def _free_of_group(directory: Path, limit: str, in_use: str, prefix: str) -> Iterator[int]:
    if not (directory / limit).is_file() or (most := (directory / limit).read_text().strip()) == "max":
        return
    statistics = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
    files = sum(int(statistics[f"{prefix}{kind}_file"]) for kind in ("active", "inactive"))
    yield int(most) - int((directory / in_use).read_text()) + files
