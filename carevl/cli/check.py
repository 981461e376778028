"""`carevl check`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer

from carevl.cli.options import AsJson, Overrides, load_tree, log, names_settings, run_at

_ROWS = 64


def check(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|SETTINGS",
            help="A model: a directory, a hub id or miniworld:judge. Or settings: a preset's name or a YAML file.",
        ),
    ],
    revision: Annotated[str | None, typer.Option(help="Commit of a hub model.")] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch a hub model that is not on this machine; else nothing is fetched.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Of a model: run Python code that comes with it.")
    ] = False,
    overrides: Overrides = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help=f"Of settings: source rows to look at. [default: {_ROWS}]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell whether a model can become a judge, or whether settings will do, before anything is paid for.

    Of a model: its family; whether judgments of a prompt are computed behind one prefix (packing shared) or each with a
    prompt of its own (plain), tried on the model itself; what gets adapters and what is frozen by default; a prompt of
    each task as the model reads it. Where its weights are not here but its configuration is, or memory is too small for
    them, packing is tried on two random layers. A model that cannot be a judge ends in one sentence and exit status 2.

    Of settings: which of the first rows can be used; the tokens of images, prompts and conversations, and how many are
    too long; where the verdict is read; a probe scored by every expert that is on this machine; and what each stage
    takes of a card: weights, adapters, gradients, optimiser, activations, cache. What cannot fit ends in exit status 2.

    Example: carevl check miniworld:judge

    Example: carevl check Qwen/Qwen3-VL-8B-Instruct --json

    Example: carevl check single-gpu --set data.sources.0.path=/data/pairs.parquet
    """
    from carevl.errors import UserError, suggest
    from carevl.settings.loader import presets

    if names_settings(target):
        if revision is not None or download or trust_remote_code:
            raise UserError("--revision, --download and --trust-remote-code are for a model; settings have their own")
        _check_settings(target, overrides, rows or _ROWS, as_json=as_json)
        return
    if overrides or rows is not None:
        raise UserError(f"--set and --rows are for settings, and {target} is neither a preset nor a YAML file")
    from carevl.models.locate import prepare_models
    from carevl.settings.models import Judge
    from carevl.training.inspection import inspect_judge

    if download:
        prepare_models({"model": Judge(path=target, revision=revision, trust_remote_code=trust_remote_code)}, log)
    try:
        inspection = inspect_judge(target, revision, code=trust_remote_code)
    except UserError as error:
        if hint := suggest(target, presets(), "", kind="the preset "):
            raise UserError(f"{error}; {hint}") from None
        raise
    for line in [json.dumps(inspection.facts())] if as_json else inspection.lines():
        typer.echo(line)


def _check_settings(name: str, overrides: Sequence[str] | None, rows: int, *, as_json: bool) -> None:
    from carevl.errors import UserError
    from carevl.pipeline.survey import survey

    found = survey(load_tree(name, overrides), run_at(name, None), rows, log)
    for line in [json.dumps(found.facts())] if as_json else found.lines():
        typer.echo(line)
    if found.problems:
        raise UserError("\n".join(found.problems))
