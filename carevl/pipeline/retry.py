"""Make failed rows again, and bring up to date what depends on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from carevl.data.drawn import draw
from carevl.pipeline import results
from carevl.pipeline.keys import stage_keys
from carevl.pipeline.repair import refuse_damaged
from carevl.pipeline.run import run_pipeline
from carevl.stages import ingest
from carevl.stages.base import RunContext, Stage
from carevl.stages.rounds import RoundOutcomes, unroll
from carevl.store.ingested import Ingested
from carevl.store.run import Run
from carevl.store.table import Table

if TYPE_CHECKING:
    from carevl.settings.tree import Settings

Tally = dict[str, Mapping[str, Any]]
"""Table to `rows_out`, how many rows had failed, and `errors`, how many of them still do."""


def retry_failed_rows(settings: Settings, run: Run, log: Callable[[str], None]) -> Tally:
    """Make the failed rows of sources, captions, scores, judgments and predictions again, and no others; then bring
    up to date the later stages that were finished before.

    Sources are read again as a whole if a row of theirs failed: a row that can now be read may be the same item as
    another, or near another's image. Nothing changes unless other rows fail than before.

    Returns:
        What was tried; nothing when no row has failed.
    """
    tally: Tally = {}
    with run.lock():
        draw(settings, run)
        context = RunContext(settings, run, stage_keys(settings, run), log, retry=True)
        *making, _ = _retryable(context)
        finished = [table for table in context.keys if context.table(table).last_manifest is not None]
        refuse_damaged(run, context.keys, finished)
        changed = _retry_sources(context, tally)
        for stage in making:
            changed = changed or _retry_stage(context, stage, tally)
    if changed:
        run_pipeline(settings, run, log, finished[-1])
    with run.lock():
        context = RunContext(settings, run, stage_keys(settings, run), log, retry=True)
        *_, evaluate = _retryable(context)
        if _retry_stage(context, evaluate, tally):
            results.write(run, results.compute(settings, run, context.keys))
    return tally


def _retryable(context: RunContext) -> list[Stage]:
    """Return the stages whose failed rows can be made again alone, `evaluate` the last."""
    stages = unroll(context.settings, RoundOutcomes(context.run, lambda: context.keys))
    return [stage for stage in stages if stage.retryable]


def _retry_stage(context: RunContext, stage: Stage, tally: Tally) -> bool:
    """Make the failed rows of a stage again; return whether fewer fail now in a table that was finished."""

    def count_failed(table: str) -> int:
        return context.table(table).errors(stage.retryable or "").total()

    before = {table: n for table in stage.tables(context.settings) if (n := count_failed(table))}
    finished = [table for table in before if context.table(table).manifest is not None]
    for table in finished:
        context.table(table).reopen()  # a retry that is killed is then no table with other parts than it lists
    counts = stage.run(replace(context, pending=list(before))) if before else {}
    changed = False
    for table, n in before.items():
        tally[table] = {"rows_out": n, "errors": count_failed(table)}
        context.log(f"{table:16s} failed rows tried again: {tally[table]['errors']} of {n} still fail")
        if table in finished:
            changed |= tally[table]["errors"] < n
            _update_manifest(context.table(table), counts[table], changed=tally[table]["errors"] < n)
    return changed


def _retry_sources(context: RunContext, tally: Tally) -> bool:
    """Read the sources again if rows of theirs failed; return whether other rows fail now: then the tables are new."""
    table = context.table("ingest")
    manifest = table.manifest or {}
    if not manifest.get("errors"):
        return False
    reread = Table(table.directory.with_name(f"{table.directory.name}.again"))
    counts = ingest.read_sources(context, reread.directory)
    tally["ingest"] = {"rows_out": manifest["errors"], "errors": counts["errors"]}
    changed = Ingested(table.directory).failed() != Ingested(reread.directory).failed()
    if changed:
        kept = {name: value for name, value in manifest.items() if name != "same_as"}
        reread.finish(kept | counts | {"retried": manifest.get("retried", 0) + 1})
        shutil.rmtree(table.directory)
        reread.directory.rename(table.directory)
    shutil.rmtree(reread.directory, ignore_errors=True)
    context.log(f"{'ingest':16s} sources read again: {counts['errors']} of {manifest['errors']} rows still fail")
    return changed


def _update_manifest(table: Table, counts: Mapping[str, Any], *, changed: bool) -> None:
    """Finish a table that was reopened; one that has changed gets another version."""
    manifest = dict(table.earlier or {})
    if changed:
        manifest = {name: value for name, value in manifest.items() if name not in ("contents", "same_as")}
    new = {name: counts[name] for name in ("errors", "verdicts") if name in counts}
    table.finish(manifest | new | {"retried": manifest.get("retried", 0) + 1} if changed else manifest)
