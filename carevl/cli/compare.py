"""`carevl compare`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from carevl.cli.options import AsJson, Overrides, Rehearse, RunDir, SettingsName, load_tree, log, run_at
from carevl.errors import UserError


def compare(
    settings: SettingsName = "mini",
    overrides: Overrides = None,
    rehearse: Rehearse = False,
    run_dir: RunDir = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of every arm; the first seed is the settings' own.")] = 5,
    arms: Annotated[str | None, typer.Option(help="Only these arms, separated by commas, of {arms}.")] = None,
    tries: Annotated[int, typer.Option(min=1, help="Learning rates of every arm, tried on the first seed.")] = 2,
    at_once: Annotated[
        int, typer.Option(min=1, help="Arms that are made side by side, as far as the cluster holds their workers.")
    ] = 1,
    sweep: Annotated[bool, typer.Option("--sweep", help="Train at two other thresholds of the router, too.")] = False,
    final: Annotated[bool, typer.Option("--final", help="Evaluate on test data, and record it.")] = False,
    world_seed: Annotated[
        int | None, typer.Option(help="With --final on miniworld: the seed that test scenes are drawn by.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare CAREVL with direct distillation and its own parts: same items, labels, base, tokens and tries.

    Figures go to RUN/compare.json and RUN/figures. Run it again after an interruption: what is there is not made again.

    Example: carevl compare mini --seeds 2 --arms base,distillation,carevl --run-dir runs/mini
    """
    from carevl.cluster.connect import check_cluster, ray_cluster
    from carevl.compare import report
    from carevl.compare import run as comparing

    tree, run = load_tree(settings, overrides, rehearse=rehearse), run_at(settings, run_dir)
    if world_seed is not None and not final:
        raise UserError("compare: --world-seed names the test scenes of --final; give both")
    plan = comparing.Plan(tuple(arms.split(",")) if arms else (), seeds, tries, sweep, at_once=at_once)
    test = comparing.Final(world_seed) if final else None
    check_cluster(tree.cluster)
    comparing.check(tree, plan, test)
    with run.lock(), ray_cluster(tree.cluster):
        comparison = comparing.compare(tree, run, plan, test, log)
    for line in [json.dumps(comparison)] if as_json else report.format_lines(comparison):
        typer.echo(line)
