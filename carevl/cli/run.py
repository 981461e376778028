"""`carevl run`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from carevl.cli.options import Overrides, Rehearse, RunDir, SettingsName, load_tree, log, run_at
from carevl.errors import UserError


def run(
    settings: SettingsName = "mini",
    overrides: Overrides = None,
    rehearse: Rehearse = False,
    run_dir: RunDir = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage, one of {stages}.")] = None,
    final: Annotated[
        bool, typer.Option("--final", help="Evaluate on the benchmarks' test data, and record it.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every stored file first; make again what is damaged.")
    ] = False,
) -> None:
    """Run the main job: from preference data to an evaluated judge in RUN/judge.

    Phase 1 is the stage sft, phase 2 the stage dpo. Run it again after an interruption or a changed setting: what is
    there and still valid is not made again.

    Example: carevl run mini --set items=64 --run-dir runs/small

    Example: carevl run single-gpu --rehearse --set cluster.num_gpus=1 --set cluster.num_cpus=16 --set
    data.sources.0.path=pairs.parquet --set items=64 --run-dir runs/rehearsal
    """
    from carevl.cluster.connect import check_cluster, ray_cluster
    from carevl.pipeline import results
    from carevl.pipeline.check import check_settings
    from carevl.pipeline.final import evaluate_final
    from carevl.pipeline.run import run_pipeline

    tree, store = load_tree(settings, overrides, rehearse=rehearse), run_at(settings, run_dir)
    if final and until:
        raise UserError("run: --final evaluates what the whole run has made; leave out --until")
    check_cluster(tree.cluster)
    check_settings(tree, until, final=final)  # before Ray starts
    with store.lock(), ray_cluster(tree.cluster):
        done = run_pipeline(tree, store, log, until, verify=verify)
        if final:
            evaluate_final(tree, store, log)
    typer.echo(f"{'stage':16s} {'action':8s} {'rows in':>8s} {'rows out':>8s} {'errors':>6s} {'seconds':>8s}")
    for stage in done:
        counts = f"{stage.rows_in:8d} {stage.rows_out:8d} {stage.errors:6d} {stage.seconds:8.1f}"
        typer.echo(f"{stage.name:16s} {stage.action:8s} {counts}")
    for line in ("", *results.table(json.loads((store.root / results.RESULTS).read_text()))):
        typer.echo(line)
