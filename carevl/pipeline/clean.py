"""Removes what no run needs: tables of earlier settings, sources and models."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from carevl.pipeline.keys import stage_keys
from carevl.stages import STAGES
from carevl.store.run import Run, RunError, fingerprint_of
from carevl.store.table import BEGUN, MANIFEST

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
    needed = _needed(settings, run)
    places = {place for stage in STAGES for place in _places(run, stage.directory or stage.name)}
    tables = sorted(file for place in places for file in place.iterdir() if _is_table(file))
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


def _needed(settings: Settings, run: Run) -> set[Path]:
    """Return the directories of the tables that the settings lead to, and of those that they were made from."""
    keys = stage_keys(settings, run)
    places = {name: key.stage for name, key in keys.items()}
    needed: set[Path] = set()
    waiting = [(key.stage, key.fingerprint, key.fingerprint_inputs) for key in keys.values()]
    causes = {place: {table.directory: cause for table, cause in run.causes(place)} for place in places.values()}
    while waiting:
        stage, fingerprint, cause = waiting.pop()
        table = run.table_of(stage, fingerprint)
        if table.directory in needed:
            continue
        needed.add(table.directory)
        sources = [(places.get(role, role), version) for role, version in cause.get("inputs", {}).items()]
        if (same := (table.last_manifest or {}).get("same_as")) is not None:
            sources.append((stage, same))
        for place, version in sources:
            made_from = run.table_of(place, fingerprint_of(version)).directory
            waiting.append((place, made_from.name, causes.get(place, {}).get(made_from, {})))
    return needed


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
