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
from carevl.cli.options import ListingCommand
from carevl.errors import UserError


class _Commands(TyperGroup):
    """The commands; an interrupt of any of them ends in one line and exit code 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("carevl: interrupted; run the same command again to go on", err=True)
            sys.exit(130)


app = typer.Typer(
    name="carevl",
    cls=_Commands,
    help="Turns image preference data without human labels into a vision-language judge.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _command in (
    run.run,
    results.results,
    status.status,
    retry.retry,
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
    """Entry point: mistakes of the user end in one line and exit code 2."""
    try:
        app()
    except (OSError, ValueError, UserError) as error:
        typer.echo(f"carevl: {error}", err=True)
        sys.exit(2)
