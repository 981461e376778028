"""`carevl export`: a run's rows into a directory, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from carevl.errors import UserError
from carevl.export.examples import Selection, parts
from carevl.export.writers import WRITERS
from carevl.store.run import Run


@dataclass(frozen=True)
class ExportCounts:
    """Rows written per split, and rows left out because a text of theirs holds the tag `<image>`."""

    rows: dict[str, int]
    left_out: int


def export(run: Run, what: Selection, to: str, out: Path) -> ExportCounts:
    """Write rows of a run in a training format.

    Args:
        what: as `examples.parts`.
        to: a name in `writers.WRITERS`.
        out: directory to write; absent or empty.

    Raises:
        UserError: there is no such format, `out` is in use, the run has not come so far, or there is nothing to write.
    """
    if to not in WRITERS:
        raise UserError(f"there is no export format {to!r}; there are {', '.join(WRITERS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; name a directory that is absent or empty with --out")
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    rows: Counter[str] = Counter()
    left_out = 0
    try:
        with closing(WRITERS[to](unfinished)) as writer:
            for part in parts(run, what):
                fit = [example for example in part.examples if not example.has_tag]
                writer.write(replace(part, examples=fit))
                rows.update(example.split for example in fit)
                left_out += len(part.examples) - len(fit)
        if not rows:
            raise UserError(f"{run.root} has no {what} to export: its table holds no row that states a preference")
        if out.exists():
            out.rmdir()
        os.replace(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return ExportCounts(dict(rows), left_out)
