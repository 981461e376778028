"""`carevl status`."""

from __future__ import annotations

import typer

from carevl.cli.options import RunRoot


def status(run_dir: RunRoot) -> None:
    """Tell of every stage of a run: finished, unfinished or out of date and why, rows, and errors by kind.

    Example: carevl status runs/mini
    """
    from carevl.pipeline import core as pipeline

    for line in pipeline.status(*pipeline.remembered(run_dir.absolute())):
        typer.echo(line)
