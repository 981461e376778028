"""`carevl results`."""

from __future__ import annotations

import typer

from carevl.cli.options import RunRoot


def results(run_dir: RunRoot) -> None:
    """Compute every figure of a run anew from its stored rows, write RUN/results.json, and print the table.

    Example: carevl results runs/mini
    """
    from carevl.pipeline import results as computed
    from carevl.pipeline.keys import load_run, stage_keys

    settings, run = load_run(run_dir.absolute())
    figures = computed.recompute(settings, run, stage_keys(settings, run))
    file = computed.write(run, figures)
    for line in (*computed.table(figures), "", f"written to {file}"):
        typer.echo(line)
