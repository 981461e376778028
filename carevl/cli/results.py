"""`carevl results`."""

from __future__ import annotations

import typer

from carevl.cli.options import RunRoot


def results(run_dir: RunRoot) -> None:
    """Compute every figure of a run anew from its stored rows, write RUN/results.json, and print the table.

    Example: carevl results runs/mini
    """
    from carevl.pipeline import core as pipeline
    from carevl.pipeline import results as computed

    settings, run = pipeline.remembered(run_dir.absolute())
    figures = computed.again(settings, run, pipeline.causes(settings, run))
    file = computed.write(run, figures)
    for line in (*computed.table(figures), "", f"written to {file}"):
        typer.echo(line)
