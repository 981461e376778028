"""`carevl retry`."""

from __future__ import annotations

import typer

from carevl.cli.options import RunRoot, log


def retry(run_dir: RunRoot) -> None:
    """Run the rows that failed once more, and only those; then every stage that their new results change.

    Example: carevl retry runs/mini
    """
    from carevl.cluster.connect import check_cluster, ray_cluster
    from carevl.pipeline.keys import load_run
    from carevl.pipeline.retry import retry_failed_rows

    settings, run = load_run(run_dir.absolute())
    check_cluster(settings.cluster)
    with run.lock(), ray_cluster(settings.cluster):
        retried = retry_failed_rows(settings, run, log)
    for name, tally in retried.items():
        typer.echo(f"{name:16s} {tally['rows_out']} rows, {tally['errors']} still failed")
    if not retried:
        typer.echo("no row has failed")
