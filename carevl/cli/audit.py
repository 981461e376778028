"""`carevl audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from carevl.cli.options import FiguresFile, log, write_figures


def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run, as in `carevl run --run-dir`.")],
    json_file: FiguresFile = None,
    rewrites: Annotated[
        int, typer.Option(min=0, help="About how many items the experts score again in other styles; 0 for none.")
    ] = 200,
) -> None:
    """Tell what is wrong with the experts of a run, and what each mitigation would change.

    Accuracy and calibration by kind, source and length; length bias, style, text-only shortcut, redundancy; findings
    in words. Pictures go to RUN/figures. Intervals are 95 %.

    Example: carevl audit runs/mini --json audit.json
    """
    from carevl.audit import report as audit_report
    from carevl.pipeline import audit as auditing

    report = auditing.audit(run, rewrites, log)
    for line in audit_report.format_lines(report):
        typer.echo(line)
    if json_file:
        write_figures(json_file, report)
    for file in audit_report.draw(report, run / "figures"):
        log(f"wrote {file}")
