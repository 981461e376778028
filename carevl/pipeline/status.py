"""What there is of a run: finished, unfinished or out of date, and its errors by kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from carevl.judging.counts import stored_warnings
from carevl.pipeline.keys import stage_keys
from carevl.stages import STAGES
from carevl.store.run import Run
from carevl.store.table import Table

if TYPE_CHECKING:
    from carevl.settings.tree import Settings


def status_lines(settings: Settings, run: Run) -> Iterator[str]:
    """Yield a line per table: what there is, or what a run would do and why; then its warnings, and errors by kind."""
    keys = stage_keys(settings, run)
    for stage in STAGES:
        for name in stage.tables(settings):
            table = run.table(keys[name])
            manifest = table.manifest
            if manifest is None:
                action, reason = run.action(keys[name])
                yield f"{name:16s} to {action}: {reason}"
                continue
            rows = f"{manifest['rows_out']} rows, {manifest['errors']} errors"
            yield f"{name:16s} finished {manifest['finished']}: {rows}"
            warnings = [*manifest.get("fallbacks", ()), *stored_warnings(manifest)]
            yield from (f"{'':16s} {sentence}" for sentence in warnings)
            errors = Table(table.directory / stage.errors_in)
            yield from (f"{'':16s} {problem}" for problem in errors.problems(5))
