"""`carevl evaluate`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, get_args

import typer

from carevl.cli.options import log
from carevl.errors import UserError, suggest

_Benchmark = Annotated[str, typer.Option(help="{benchmarks}.")]
_Data = Annotated[Path, typer.Option(help="The benchmark's rows: a file, or a folder of files.")]
_Judge = Annotated[
    str | None,
    typer.Option(
        help="A model directory or hub id, `URL#MODEL` of an OpenAI-compatible endpoint, or longer, first, random."
    ),
]
_Images = Annotated[Path | None, typer.Option(help="Where image paths begin; beside the data by default.")]
_Protocols = Annotated[
    list[str] | None,
    typer.Option(help="{protocols}; may be given several times."),
]
_Draws = Annotated[int | None, typer.Option("--k", min=1, help="Judgments per row where a protocol draws several.")]
_Engine = Annotated[str | None, typer.Option(help="{engines}; vllm by default.")]
_JudgeOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting of the judge: revision=…, max_tokens=512, pool.num_gpus=1.",
    ),
]
_MaxErrorFraction = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Share of questions that may fail, 0.05 by default; each counts as without a verdict."
    ),
]
_ForceVerdicts = Annotated[
    bool,
    typer.Option(
        "--force-verdicts",
        help="Ask a judgment that was cut before its verdict for it once more, after what it says; it is marked.",
    ),
]
_AllowMissingImages = Annotated[bool, typer.Option(help="Leave out rows whose image is missing.")]
_Out = Annotated[Path | None, typer.Option(help="Directory for predictions.parquet and figures.json.")]
_Stored = Annotated[
    Path | None,
    typer.Option("--from", help="Ask nobody: score these predictions, or another harness's result files, anew."),
]
_Compare = Annotated[
    tuple[Path, Path] | None, typer.Option(help="Ask nobody: compare two judges by their predictions.")
]


def evaluate(
    benchmark: _Benchmark,
    data: _Data,
    judge: _Judge = None,
    images: _Images = None,
    protocol: _Protocols = None,
    k: _Draws = None,
    engine: _Engine = None,
    overrides: _JudgeOverrides = None,
    max_error_fraction: _MaxErrorFraction = None,
    allow_missing_images: _AllowMissingImages = False,
    force_verdicts: _ForceVerdicts = False,
    out: _Out = None,
    stored: _Stored = None,
    compare: _Compare = None,
) -> None:
    """Ask a judge every question of a benchmark, or score what was answered, with 95 % intervals and baselines.

    An interrupted evaluation goes on where it stopped when the same command is given again.

    Example: carevl evaluate --judge miniworld:judge --benchmark vl-rewardbench --data world/dev/vl_rewardbench.parquet
    --out runs/base
    """
    from carevl.benchmarks import command
    from carevl.benchmarks.data import load
    from carevl.models.engines import ENGINES

    if engine is not None:
        _ = ENGINES[engine]  # refuses a name that nothing has before anything is read
    _refuse_unknown(protocol or ())
    if sum(choice is not None for choice in (judge, stored, compare)) != 1:
        raise UserError("evaluate: give one of --judge JUDGE, --from PREDICTIONS and --compare A B")
    asking = {"--engine": engine, "--set": overrides, "--max-error-fraction": max_error_fraction}
    asking["--allow-missing-images"] = allow_missing_images or None
    asking["--force-verdicts"] = force_verdicts or None
    if judge is not None:
        _refuse_for_judge(judge, asking)
    else:
        choice = "--from" if compare is None else "--compare"
        _refuse_options(f"{choice}, which asks nobody", {**asking, "--protocol": protocol})
        _refuse_options("--compare, which writes nothing", {"--out": out if compare is not None else None})
    rows = load(benchmark, data, images)
    lines: Iterable[str] = ()
    if judge is not None:
        if out is None:
            raise UserError("evaluate: give --out DIR, where predictions and figures are written")
        request = command.EvalRequest(
            judge,
            engine or "vllm",
            protocol or (),
            k,
            overrides or (),
            allow_missing_images,
            0.05 if max_error_fraction is None else max_error_fraction,
            force_verdicts,
        )
        lines = command.evaluate(rows, request, out, log)
    elif stored is not None:
        lines = command.rescore(rows, stored, k, out)
    elif compare is not None:
        lines = command.compare(rows, compare, k)
    for line in lines:
        typer.echo(line)


def _refuse_for_judge(judge: str, asking: Mapping[str, object]) -> None:
    """Refuse options of asking that do nothing for a kind of judge; errors as for `_refuse_options`."""
    from carevl.benchmarks.baselines import TRIVIAL_JUDGES
    from carevl.settings.requests import is_endpoint

    if judge in TRIVIAL_JUDGES:
        _refuse_options(f"--judge {judge}, which needs no model and no images", asking)
    elif is_endpoint(judge):
        _refuse_options("an endpoint", {"--engine": asking["--engine"]})


def _refuse_options(what: str, options: Mapping[str, object]) -> None:
    """Refuse options that do nothing beside another.

    Raises:
        UserError: one of them was given (is not None); it names all that were.
    """
    if given := [name for name, value in options.items() if value is not None]:
        raise UserError(f"evaluate: {', '.join(given)} does not apply to {what}; leave it out")


def _refuse_unknown(protocols: Sequence[str]) -> None:
    """Refuse protocols that there are not.

    Raises:
        UserError: with the name that comes closest.
    """
    from carevl.settings.data import ProtocolName

    names = get_args(ProtocolName)
    for protocol in protocols:
        if protocol not in names:
            hint = suggest(protocol, names, f"there are {', '.join(names)}")
            raise UserError(f"there is no protocol {protocol!r}; {hint}")
