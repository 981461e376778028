"""`carevl status`."""

from __future__ import annotations

from typing import Annotated

import typer

from carevl.cli.options import RunRoot, log


def status(
    run_dir: RunRoot,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every stored file, and name those that are damaged; 3 if any is.")
    ] = False,
) -> None:
    """Tell of every stage of a run: finished, unfinished or out of date and why, rows, and errors by kind.

    Example: carevl status runs/mini

    Example: carevl status runs/mini --verify
    """
    from carevl.pipeline.keys import load_run
    from carevl.pipeline.status import status_lines, unlisted_tables, verify_run

    settings, run = load_run(run_dir.absolute())
    if run.refusal is not None:
        log(run.refusal)
    for line in status_lines(settings, run):
        typer.echo(line)
    if not verify:
        return
    if unlisted := unlisted_tables(settings, run):
        typer.echo(f"an earlier version finished {', '.join(unlisted)}: it kept no checksums to compare")
    damaged = list(verify_run(settings, run))
    for line in damaged:
        typer.echo(line)
    if damaged:
        typer.echo(f"make it again with: carevl run {run.settings} --run-dir {run.root} --verify")
        raise typer.Exit(3)
    typer.echo("every stored file that a run reads is what was written")
