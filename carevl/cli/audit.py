"""`carevl audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from carevl.cli.options import FiguresFile, log, write_figures
from carevl.errors import UserError

_AMOUNT = 200
"""Items, or pairs, that are tried where nothing else is said."""


def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run, as in `carevl run --run-dir`.")],
    json_file: FiguresFile = None,
    rewrites: Annotated[
        int | None,
        typer.Option(min=0, help="About how many items the experts score again in other styles, 200; 0 for none."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar="JUDGE", help="Audit a judge in their place: its directory or hub id, as RUN/judge."),
    ] = None,
    pairs: Annotated[
        int | None, typer.Option(min=1, help="About how many pairs the judge is asked about, 200.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="The judge's engine; the run's by default.")] = None,
) -> None:
    """Tell what is wrong with the experts of a run, and what each mitigation would change; or with a judge.

    Experts: accuracy and calibration by kind, source and length; length bias, style, text-only shortcut, redundancy;
    findings in words. Pictures go to RUN/figures. A judge: the share of its verdicts that a line at the end of a
    response changes, such as a verdict, or an instruction to choose it. Intervals are 95 %.

    Example: carevl audit runs/mini --json audit.json
    """
    from carevl.audit import report as audit_report
    from carevl.audit.injection import format_injection
    from carevl.pipeline import audit as auditing
    from carevl.store.run import Run

    if judge is not None:
        if rewrites is not None:
            raise UserError("--rewrites is for experts, and --judge audits a judge; leave one of them out")
        measured = auditing.audit_judge(run, judge, pairs or _AMOUNT, log, engine=engine)
        typer.echo(f"{judge}: {measured['read']} of {measured['pairs']} pairs have a verdict")
        for line in format_injection(measured["lines"]):
            typer.echo(line)
        if json_file:
            write_figures(json_file, measured)
        auditing.keep_beside_judge(measured)
        return
    if pairs is not None or engine is not None:
        raise UserError("--pairs and --engine are for a judge; name it with --judge")
    report = auditing.audit(run, _AMOUNT if rewrites is None else rewrites, log)
    for line in audit_report.format_lines(report):
        typer.echo(line)
    if json_file:
        write_figures(json_file, report)
    with Run(run).lock():
        for file in audit_report.draw(report, run / "figures"):
            log(f"wrote {file}")
