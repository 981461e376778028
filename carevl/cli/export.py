"""`carevl export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def export(
    run: Annotated[Path, typer.Argument(help="Run directory, as `carevl run` has written it.")],
    out: Annotated[Path, typer.Option(help="Directory to write; must be empty or absent.")],
    what: Annotated[Literal["items", "pairs", "judgments", "dpo"], typer.Option(help="Which rows.")] = "pairs",
    to: Annotated[Literal["trl", "llamafactory", "ms-swift"], typer.Option(help="Which format.")] = "trl",
) -> None:
    """Write what a run made in the formats of TRL, LLaMA-Factory and ms-swift, one file per split.

    items: every pair of responses that labels or sources put in an order. pairs: the pairs whose label the router
    trusts. judgments: the targets of phase 1. dpo: the chosen and rejected judgments of phase 2.

    Example: carevl export runs/mini --what pairs --to trl --out pairs
    """
    from carevl.export.export import export as write
    from carevl.store.run import Run

    done = write(Run(run), what, to, out)
    for split, rows in done.rows.items():
        typer.echo(f"{rows:7d}  {split}")
    if done.left_out:
        typer.echo(f"{done.left_out:7d}  left out: their text holds the tag <image>")
