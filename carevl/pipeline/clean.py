"""Removes what no run needs: tables of earlier settings, sources and models."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from carevl.pipeline.keys import stage_keys
from carevl.stages import STAGES
from carevl.stages.examine import CHOICE, EXAMINE
from carevl.store.run import Run, RunError, fingerprint_of
from carevl.store.table import BEGUN, MANIFEST, Table

if TYPE_CHECKING:
    from carevl.settings.tree import Settings


@dataclass(frozen=True)
class UnneededTable:
    """A table that the last settings of a run do not lead to, as `STAGE/FINGERPRINT`, and its bytes on disk."""

    directory: Path
    name: str
    size: int

    def line(self) -> str:
        """Return name and size in words."""
        return f"{self.name:40s} {self.size / 2**20:10.1f} MiB"


def find_unneeded(settings: Settings, run: Run) -> list[UnneededTable]:
    """Return the tables of a run directory that neither its last settings lead to, nor what these lead to comes from.

    Raises:
        RunError: arms were compared there, whose tables lead from settings of their own.
    """
    if (run.root / "compare").exists():
        raise RunError(f"{run.root} holds a comparison, whose arms have tables of their own; remove it as a whole")
    tables = sorted(_tables(run))
    needed = _needed(settings, run, tables)
    return [
        UnneededTable(table, str(table.relative_to(run.root)), _size(table)) for table in tables if table not in needed
    ]


def clean(settings: Settings, run: Run) -> list[UnneededTable]:
    """Remove what `find_unneeded` returns, and return it; nothing while a run is at work there.

    Raises:
        RunError: another process holds the run directory; or as `find_unneeded`.
    """
    with run.lock():
        unneeded = find_unneeded(settings, run)
        for table in unneeded:
            shutil.rmtree(table.directory)
        return unneeded


def _needed(settings: Settings, run: Run, tables: Sequence[Path]) -> set[Path]:
    """Return the directories of the tables that the settings lead to, and of those that they were made from."""
    by_fingerprint = {table.name: table for table in tables}
    needed: set[Path] = set()
    waiting = [run.table(key).directory for key in stage_keys(settings, run).values()]
    while waiting:
        directory = waiting.pop()
        if directory in needed:
            continue
        needed.add(directory)
        table = Table(directory)
        versions = [*(table.cause or {}).get("inputs", {}).values(), (table.last_manifest or {}).get("same_as", "")]
        sources = map(fingerprint_of, versions)
        waiting += [by_fingerprint[name] for name in sources if name in by_fingerprint]
    return needed


def _tables(run: Run) -> Iterator[Path]:
    """Yield the directories of the tables that a run may make, or has made with other settings."""
    rounds = [f"{place.parent.name}/{place.name}" for place in run.root.glob("round-*/*")]
    stages = [*(stage.name for stage in STAGES), CHOICE.name, EXAMINE, *rounds]
    for place in itertools.chain.from_iterable(_places(run, stage) for stage in stages):
        yield from filter(_is_table, place.iterdir())


def _places(run: Run, name: str) -> Iterator[Path]:
    """Yield the directories in which tables of a stage lie: its own, or one for each of its members, past ones too."""
    place = run.root / name
    if place.is_dir():
        yield place
        yield from (member for member in place.iterdir() if member.is_dir() and not _is_table(member))


def _is_table(directory: Path) -> bool:
    return any((directory / name).exists() for name in (MANIFEST, BEGUN))


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file() and not file.is_symlink())
