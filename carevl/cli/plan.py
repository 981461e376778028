"""`carevl plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from carevl.cli.options import Overrides, Rehearse, RunDir, SettingsName, load_tree, log, run_at


def plan(
    settings: SettingsName = "mini",
    overrides: Overrides = None,
    rehearse: Rehearse = False,
    run_dir: RunDir = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time captioner and experts on a batch of rows.")] = False,
) -> None:
    """Tell what a run would do and what it needs, before anything runs.

    Every stage: skipped, resumed or made again, and why. Rows and distinct images, once they have been read. What the
    stages reserve on Ray against what there is: what can never be had is an error. With --measure the sources are
    read, and the time of the stages caption and score is estimated.

    Example: carevl plan mini --set captioner.prompt="Describe the image."
    """
    from carevl.pipeline.plan import plan_lines

    for line in plan_lines(load_tree(settings, overrides, rehearse=rehearse), run_at(settings, run_dir), measure, log):
        typer.echo(line)
