"""`carevl clean`."""

from __future__ import annotations

from typing import Annotated

import typer

from carevl.cli.options import RunRoot

_DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")]


def clean(run_dir: RunRoot, dry_run: _DryRun = False) -> None:
    """Remove the tables of a run that its last settings do not need: those of earlier settings, sources and models.

    A run keeps them, because what a changed setting leaves alike is taken from there, and because going back to earlier
    settings then costs nothing. After a clean it does.

    Example: carevl clean runs/mini --dry-run
    """
    from carevl.pipeline.clean import clean as remove
    from carevl.pipeline.clean import find_unneeded
    from carevl.pipeline.keys import load_run

    settings, run = load_run(run_dir.absolute())
    tables = find_unneeded(settings, run) if dry_run else remove(settings, run)
    for table in tables:
        typer.echo(table.line())
    size = sum(table.size for table in tables) / 2**20
    past = "would be removed" if dry_run else "removed"
    typer.echo(f"{len(tables)} tables, {size:.1f} MiB {past}" if tables else "every table is needed")
