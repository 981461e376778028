"""`carevl miniworld`: draw a world, train the shipped models on it, measure them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from carevl.cli.options import FiguresFile, log, write_figures

app = typer.Typer(
    help="The embedded default: drawn scenes with exact truth, and small models trained on them.", no_args_is_help=True
)


@app.command()
def draw(
    out: Annotated[Path, typer.Option(help="Directory to write; must be empty or absent.")],
    items: Annotated[
        int, typer.Option(min=1, help="Training items: an image, a question and 2 to 4 responses.")
    ] = 2000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 7,
    calibration_images: Annotated[int, typer.Option(min=1, help="Labelled images for the router's guarantee.")] = 3000,
) -> None:
    """Draw a world and write it in public formats.

    Training pairs in RLAIF-V's columns and rows of 3 or 4 responses in VLFeedback's (their own preference is right
    in 70 % of the rows), a labelled calibration split, and dev and test sets in the formats of VL-RewardBench and
    MLLM-as-a-Judge. The exact truth lies apart under truth/.

    Example: carevl miniworld draw --items 2000 --seed 7 --out world
    """
    from carevl.miniworld.publish import publish

    world = publish(out, items, seed, calibration_images)
    for file, rows in world["rows"].items():
        typer.echo(f"{rows:7d}  {out / file}")


@app.command()
def train(
    work: Annotated[Path, typer.Option(help="Directory for checkpoints and finished stages.")] = Path("runs/miniworld"),
    only: Annotated[list[str] | None, typer.Option(help="Train this stage only; may be given several times.")] = None,
    install: Annotated[bool, typer.Option(help="Put the finished models into the package, measured.")] = False,
) -> None:
    """Train every shipped model from nothing (about an hour on two cores).

    Finished stages are skipped and an interrupted one goes on from its last checkpoint, at most two minutes old.

    Example: carevl miniworld train --work runs/miniworld --install
    """
    from carevl.miniworld import train as training

    training.train(work, only, typer.echo)
    if install:
        training.install(work)


@app.command()
def quality(
    json_file: FiguresFile = None,
    weights: Annotated[Path | None, typer.Option(help="Models to measure; the shipped ones by default.")] = None,
    items: Annotated[int, typer.Option(min=40, help="Freshly drawn pairs.")] = 800,
    sampled: Annotated[int, typer.Option(min=1, help="How many of them are judged 8 times at temperature 1.")] = 120,
    seed: Annotated[int, typer.Option(help="Which scenes are drawn.")] = 11,
) -> None:
    """Measure what the shipped models can and cannot do, on unseen scenes, with 95 % intervals.

    Example: carevl miniworld quality --json quality.json
    """
    from carevl.miniworld.quality import measure, table
    from carevl.miniworld.weights import WEIGHTS

    figures = measure(weights or WEIGHTS, seed=seed, n_items=items, n_sampled=sampled, log=log)
    if json_file:
        write_figures(json_file, figures)
    typer.echo(table(figures))
