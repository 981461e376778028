"""`carevl train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from carevl.cli.options import Overrides, log


def train(
    judge: Annotated[str, typer.Argument(metavar="JUDGE", help="The model to train: a directory or a hub id.")],
    rows: Annotated[Path, typer.Option(metavar="RUN", help="Directory of the run whose targets and pairs are used.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the judge is trained; it lies in DIR/judge.")],
    settings: Annotated[
        str | None,
        typer.Option(
            metavar="SETTINGS",
            help="A preset's name or a YAML file, whose judge, sft, dpo and cluster hold; those of RUN by default.",
        ),
    ] = None,
    overrides: Overrides = None,
    until: Annotated[
        Literal["sft", "dpo"] | None, typer.Option(metavar="PHASE", help="Stop after sft (phase 1) or dpo (phase 2).")
    ] = None,
) -> None:
    """Train any judge on what a finished run has made: phase 1 on its targets, phase 2 on its pairs; merge the result.

    No model but the judge is needed: captions, scores and judgments are the run's. They were written by the run's own
    judge, so for another model both phases are off-policy. `carevl check JUDGE` says beforehand whether a model can be
    trained. Run it again after an interruption or a changed setting: a phase that is still valid is not trained again.

    Example: carevl train Qwen/Qwen3-VL-8B-Instruct --rows runs/single-gpu --out runs/qwen3 --set judge.revision=COMMIT

    Example: carevl train miniworld:judge --rows runs/mini --out runs/again --set sft.epochs=2
    """
    from carevl.pipeline.train import next_steps, train_judge, training_settings
    from carevl.store.run import Run

    tree, run = training_settings(judge, rows.absolute(), settings, overrides or ())
    directory = Run.at(out)
    done = train_judge(tree, run, directory, log, until)
    typer.echo(f"{'phase':16s} {'action':8s} {'rows in':>8s} {'rows out':>8s} {'errors':>6s} {'seconds':>8s}")
    for phase in done:
        counts = f"{phase.rows_in:8d} {phase.rows_out:8d} {phase.errors:6d} {phase.seconds:8.1f}"
        typer.echo(f"{phase.name:16s} {phase.action:8s} {counts}")
    for line in ("", *next_steps(tree, run, directory)):
        typer.echo(line)
