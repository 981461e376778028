"""`carevl results`."""

from __future__ import annotations

import typer

from carevl.cli.options import RunRoot
from carevl.errors import MachineError, UserError, as_user_error, exit_status


def results(run_dir: RunRoot) -> None:
    """Compute every figure of a run anew from its stored rows, print the table, and write RUN/results.json.

    Where that cannot be written, because a run is at work there or the directory is read-only, the table is printed all
    the same, and the exit status is 2.

    Example: carevl results runs/mini
    """
    from carevl.pipeline import results as computed
    from carevl.pipeline.keys import load_run, stage_keys

    settings, run = load_run(run_dir.absolute())
    figures = computed.recompute(settings, run, stage_keys(settings, run))
    for line in (*computed.table(figures), ""):
        typer.echo(line)
    try:
        with run.lock():
            typer.echo(f"written to {computed.write(run, figures)}")
    except (UserError, OSError) as error:
        kind = MachineError if exit_status(error) == 3 else UserError
        problem = as_user_error(error) if isinstance(error, OSError) else error
        raise kind(f"these figures are not stored: {problem}") from error
