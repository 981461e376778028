"""`carevl check`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from carevl.cli.options import AsJson, log


def check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model: a directory, a hub id or miniworld:judge.")],
    revision: Annotated[str | None, typer.Option(help="Commit of a hub model.")] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch a hub model that is not on this machine; else nothing is fetched.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tell whether a model can become a judge, and how: load it, ask it, and compute two items in both ways.

    Its family; whether judgments of a prompt are computed behind one prefix (packing shared) or each with a prompt of
    its own (plain), tried on the model itself; what gets adapters and what is frozen by default; a prompt of each task
    as the model reads it. Where its weights are not here but its configuration is, or memory is too small for them,
    packing is tried on two random layers. A model that cannot be a judge ends in one sentence and exit status 2.

    Example: carevl check miniworld:judge

    Example: carevl check Qwen/Qwen3-VL-8B-Instruct --json
    """
    from carevl.models.locate import prepare_models
    from carevl.settings.models import Judge
    from carevl.training.inspection import inspect_judge

    if download:
        prepare_models({"model": Judge(path=model, revision=revision)}, log)
    inspection = inspect_judge(model, revision)
    for line in [json.dumps(inspection.facts())] if as_json else inspection.lines():
        typer.echo(line)
