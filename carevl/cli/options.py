"""Arguments and options that several commands have, and what several do with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from carevl.store.run import Run

SettingsName = Annotated[str, typer.Argument(metavar="SETTINGS", help="A preset's name or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting.")]
RunDir = Annotated[Path | None, typer.Option(help="Where results lie; runs/SETTINGS by default.")]
RunRoot = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
FiguresFile = Annotated[Path | None, typer.Option("--json", help="Also write every figure to this file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def run_at(settings: str, run_dir: Path | None) -> Run:
    """Return the run directory that a command line names: `run_dir`, or runs/SETTINGS."""
    from carevl.store.run import Run

    return Run.at(run_dir or Path("runs") / Path(settings).stem)


def log(line: str) -> None:
    """Print a line of progress, apart from what the command answers."""
    typer.echo(line, err=True)


def write_figures(file: Path, figures: Mapping[str, Any]) -> None:
    """Write figures as JSON, with the directories above the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(figures, indent=2) + "\n")
