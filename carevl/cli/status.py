"""`carevl status`."""

from __future__ import annotations

import typer

from carevl.cli.options import RunRoot


def status(run_dir: RunRoot) -> None:
    """Tell of every stage of a run: finished, unfinished or out of date and why, rows, and errors by kind.

    Example: carevl status runs/mini
    """
    from carevl.pipeline.keys import load_run
    from carevl.pipeline.status import status_lines

    for line in status_lines(*load_run(run_dir.absolute())):
        typer.echo(line)
