"""The `carevl` command: its commands in the order of its help, and how mistakes end.

Heavy imports happen inside the commands, so that `--help` is instant.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import carevl
from carevl.cli import (
    audit,
    check,
    clean,
    compare,
    evaluate,
    export,
    judge,
    miniworld,
    plan,
    results,
    retry,
    run,
    settings,
    sources,
    status,
    train,
)
from carevl.cli.ending import ending, list_statuses, report_end
from carevl.cli.options import ListingCommand
from carevl.cli.supervisor import supervise


class _Commands(TyperGroup):
    """The commands; typer would answer an interrupt of any of them in its own way."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            sys.exit(report_end("carevl", interrupt))


app = typer.Typer(
    name="carevl",
    cls=_Commands,
    help="Turns image preference data without human labels into a vision-language judge.",
    epilog=list_statuses(),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _command in (
    run.run,
    results.results,
    status.status,
    retry.retry,
    clean.clean,
    judge.judge,
    check.check,
    train.train,
    plan.plan,
    evaluate.evaluate,
    audit.audit,
    compare.compare,
    settings.settings,
    sources.sources,
    export.export,
):
    app.command(cls=ListingCommand)(_command)
app.add_typer(miniworld.app, name="miniworld")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"carevl {carevl.__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: whatever happens ends in one line, and the exit status that `carevl --help` lists."""
    supervise("carevl", run_here)


def run_here() -> None:
    """Run the command line in this process."""
    with ending("carevl"):
        app()
