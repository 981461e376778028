"""What there is of a run: finished, unfinished or out of date, and its errors by kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from carevl.data.drawn import data_root
from carevl.judging.counts import stored_warnings
from carevl.pipeline.keys import stage_keys
from carevl.pipeline.verify import changed_sources, find_damages
from carevl.stages.rounds import RoundOutcomes, unroll
from carevl.store.damage import DamagedError
from carevl.store.run import Run
from carevl.store.table import Table

if TYPE_CHECKING:
    from carevl.settings.tree import Settings
    from carevl.stages.base import Stage


def status_lines(settings: Settings, run: Run) -> Iterator[str]:
    """Yield a line per table: what there is, or what a run would do and why; then its warnings, and errors by kind."""
    keys = stage_keys(settings, run)
    outcomes = RoundOutcomes(run, lambda: keys)
    for stage in unroll(settings, outcomes):
        for name in stage.tables(settings):
            action, reason = run.action(keys[name])
            if action != "skip":
                yield f"{name:16s} to {action}: {reason}"
                continue
            yield from _finished_lines(name, run.table(keys[name]), stage)
    yield from outcomes.lines(settings.rounds)


def _finished_lines(name: str, table: Table, stage: Stage) -> Iterator[str]:
    manifest = table.manifest or {}
    taken = f" ({manifest['rows_taken']} from earlier tables)" if manifest.get("rows_taken") else ""
    rows = f"{manifest['rows_out']} rows{taken}, {manifest['errors']} errors"
    yield f"{name:16s} finished {manifest['finished']}: {rows}"
    warnings = [*manifest.get("fallbacks", ()), *stored_warnings(manifest)]
    yield from (f"{'':16s} {sentence}" for sentence in warnings)
    try:
        problems = Table(table.directory / stage.errors_in).problems(5)
    except DamagedError as error:
        problems = [str(error)]
    yield from (f"{'':16s} {problem}" for problem in problems)


def verify_run(settings: Settings, run: Run) -> Iterator[str]:
    """Read every stored file of a run, and yield a line about each that is not what was written."""
    for damage in find_damages(settings, run):
        yield from damage.lines()
    with data_root(settings, run) as root:
        ingested = run.table(stage_keys(settings, run)["ingest"])
        yield from changed_sources(root, ingested.last_manifest or {})


def unlisted_tables(settings: Settings, run: Run) -> list[str]:
    """Return the finished tables of an earlier version, whose manifests list no files to compare."""
    tables = {name: run.table(key).last_manifest for name, key in stage_keys(settings, run).items()}
    return [name for name, manifest in tables.items() if manifest is not None and "files" not in manifest]
