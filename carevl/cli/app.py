"""The `carevl` command. Each function is one command; heavy imports happen inside, so that `--help` is instant."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

import carevl
from carevl.errors import UserError

if TYPE_CHECKING:
    from carevl.store.run import Run


class _Commands(TyperGroup):
    """The commands; an interrupt of any of them ends in one line and exit code 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("carevl: interrupted; run the same command again to go on", err=True)
            sys.exit(130)


app = typer.Typer(
    name="carevl",
    cls=_Commands,
    help="Turns image preference data without human labels into a vision-language judge.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
miniworld = typer.Typer(
    help="The embedded default: drawn scenes with exact truth, and small models trained on them.", no_args_is_help=True
)
app.add_typer(miniworld, name="miniworld")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"carevl {carevl.__version__}")
        raise typer.Exit


_SettingsName = Annotated[str, typer.Argument(metavar="SETTINGS", help="A preset's name or a YAML file.")]
_Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting.")]
_RunDir = Annotated[Path | None, typer.Option(help="Where results lie; runs/SETTINGS by default.")]


@app.command()
def run(
    settings: _SettingsName = "mini",
    overrides: _Overrides = None,
    run_dir: _RunDir = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    final: Annotated[
        bool, typer.Option("--final", help="Evaluate on the benchmarks' test data, and record it.")
    ] = False,
) -> None:
    """Run the main job: from preference data to an evaluated judge in RUN/judge.

    Stages: ingest, caption, score, route, demonstrate, sft (phase 1), sample, select, dpo (phase 2), evaluate. Run it
    again after an interruption or a changed setting: what is there and still valid is not made again.

    Example: carevl run mini --set items=64 --run-dir runs/small
    """
    from carevl.cluster.connect import ray_cluster
    from carevl.pipeline import core as pipeline
    from carevl.pipeline import results
    from carevl.settings import load_settings
    from carevl.stages import evaluate

    tree, where = load_settings(settings, overrides or ()), _run(settings, run_dir)
    if final:
        if until:
            raise UserError("run: --final evaluates what the whole run has made; leave out --until")
        evaluate.final(tree)  # refuses before anything runs
    with ray_cluster(tree.cluster):
        done = pipeline.run(tree, where, _progress, until)
        if final:
            pipeline.run_final(tree, where, _progress)
    typer.echo(f"{'stage':16s} {'action':8s} {'rows in':>8s} {'rows out':>8s} {'errors':>6s} {'seconds':>8s}")
    for stage in done:
        counts = f"{stage.rows_in:8d} {stage.rows_out:8d} {stage.errors:6d} {stage.seconds:8.1f}"
        typer.echo(f"{stage.name:16s} {stage.action:8s} {counts}")
    for line in ("", *results.table(json.loads((where.root / results.RESULTS).read_text()))):
        typer.echo(line)


_Directory = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


@app.command(name="results")
def show_results(run_dir: _Directory) -> None:
    """Compute every figure of a run anew from its stored rows, write RUN/results.json, and print the table.

    Example: carevl results runs/mini
    """
    from carevl.pipeline import core as pipeline
    from carevl.pipeline import results

    settings, where = pipeline.remembered(run_dir.absolute())
    found = results.again(settings, where, pipeline.causes(settings, where))
    file = results.write(where, found)
    for line in (*results.table(found), "", f"written to {file}"):
        typer.echo(line)


@app.command()
def status(run_dir: _Directory) -> None:
    """Tell of every stage of a run: finished, unfinished or out of date and why, rows, and errors by kind.

    Example: carevl status runs/mini
    """
    from carevl.pipeline import core as pipeline

    for line in pipeline.status(*pipeline.remembered(run_dir.absolute())):
        typer.echo(line)


@app.command()
def retry(run_dir: _Directory) -> None:
    """Run the rows that failed once more, and only those; then every stage that their new results change.

    Example: carevl retry runs/mini
    """
    from carevl.cluster.connect import ray_cluster
    from carevl.pipeline import core as pipeline

    settings, where = pipeline.remembered(run_dir.absolute())
    with ray_cluster(settings.cluster):
        retried = pipeline.retry(settings, where, _progress)
    for name, tally in retried.items():
        typer.echo(f"{name:16s} {tally['rows_out']} rows, {tally['errors']} still failed")
    if not retried:
        typer.echo("no row has failed")


@app.command(name="judge")
def judge_responses(
    model: Annotated[str, typer.Argument(metavar="DIR", help="A judge: RUN/judge, a model directory or a hub id.")],
    image: Annotated[Path, typer.Option(help="The image file.")],
    question: Annotated[str, typer.Option(help="What was asked about it.")],
    response: Annotated[list[str], typer.Option(help="An answer; one is rated, two are compared, more are ranked.")],
    engine: Annotated[str, typer.Option(help="transformers, or vllm.")] = "transformers",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask a judge which response is better, with its probability and its evidence.

    Example: carevl judge runs/mini/judge --image photo.png --question "How many circles are there?"
    --response "Two." --response "Three."
    """
    from carevl.cli.answers import answer

    for line in answer(model, engine, image, question, response, as_json=as_json):
        typer.echo(line)


@app.command()
def plan(
    settings: _SettingsName = "mini",
    overrides: _Overrides = None,
    run_dir: _RunDir = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time captioner and experts on a batch of rows.")] = False,
) -> None:
    """Tell what a run would do and what it needs, before anything runs.

    Every stage: skipped, resumed or made again, and why. Rows and distinct images, once they have been read. What the
    stages reserve on Ray against what there is: what can never be had is an error. With --measure the sources are
    read, and the time of the stages caption and score is estimated.

    Example: carevl plan mini --set captioner.prompt="Describe the image."
    """
    from carevl.pipeline import planning
    from carevl.settings import load_settings

    for line in planning.tell(load_settings(settings, overrides or ()), _run(settings, run_dir), measure, _progress):
        typer.echo(line)


@app.command()
def evaluate(
    benchmark: Annotated[
        str,
        typer.Option(help="vl-rewardbench, mllm-judge, multimodal-rewardbench, mm-rlhf-rewardbench or rewardbench2."),
    ],
    data: Annotated[Path, typer.Option(help="The benchmark's rows: a file, or a folder of files.")],
    judge: Annotated[
        str | None,
        typer.Option(
            help="A model directory or hub id, `URL#MODEL` of an OpenAI-compatible endpoint, or longer, first, random."
        ),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Where image paths begin; beside the data by default.")] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="official, official_scorer, strict or verdict_prob; may be given several times."),
    ] = None,
    k: Annotated[
        int | None, typer.Option("--k", min=1, help="Judgments per row where a protocol draws several.")
    ] = None,
    engine: Annotated[str, typer.Option(help="vllm, or transformers.")] = "vllm",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change one setting of the judge: revision=…, max_tokens=512, pool.num_gpus=1.",
        ),
    ] = None,
    max_error_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share of questions that may fail; each counts as without a verdict.")
    ] = 0.05,
    allow_missing_images: Annotated[bool, typer.Option(help="Leave out rows whose image is missing.")] = False,
    out: Annotated[Path | None, typer.Option(help="Directory for predictions.parquet and figures.json.")] = None,
    stored: Annotated[
        Path | None, typer.Option("--from", help="Ask nobody: compute every figure anew from these predictions.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Ask nobody: compare two judges by their predictions.")
    ] = None,
) -> None:
    """Ask a judge every question of a benchmark, or score what was answered, with 95 % intervals and baselines.

    An interrupted evaluation goes on where it stopped when the same command is given again.

    Example: carevl evaluate --judge miniworld:judge --benchmark vl-rewardbench --data world/dev/vl_rewardbench.parquet
    --out runs/base
    """
    from carevl.benchmarks import command
    from carevl.benchmarks.data import load

    found = load(benchmark, data, images)
    if sum(choice is not None for choice in (judge, stored, compare)) != 1:
        raise UserError("evaluate: give one of --judge JUDGE, --from PREDICTIONS and --compare A B")
    if judge is not None:
        if out is None:
            raise UserError("evaluate: give --out DIR, where predictions and figures are written")
        asking = command.Asking(
            judge, engine, protocol or (), k, overrides or (), allow_missing_images, max_error_fraction
        )
        lines = command.evaluate(found, asking, out, _progress)
    elif stored is not None:
        lines = command.score_again(found, stored, k, out, allow_missing_images)
    elif compare is not None:
        lines = command.compare(found, compare, k, allow_missing_images)
    for line in lines:
        typer.echo(line)


@app.command()
def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run, as in `carevl run --run-dir`.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write every figure to this file.")] = None,
    rewrites: Annotated[
        int, typer.Option(min=0, help="About how many items the experts score again in other styles; 0 for none.")
    ] = 200,
) -> None:
    """Tell what is wrong with the experts of a run, and what each mitigation would change.

    Accuracy and calibration by kind, source and length; length bias, style, text-only shortcut, redundancy; findings
    in words. Pictures go to RUN/figures. Intervals are 95 %.

    Example: carevl audit runs/mini --json audit.json
    """
    from carevl.audit import report as audit_report
    from carevl.pipeline import audit as auditing

    report = auditing.audit(run, rewrites, _progress)
    for line in audit_report.lines(report):
        typer.echo(line)
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(report, indent=2) + "\n")
    for file in audit_report.draw(report, run / "figures"):
        _progress(f"wrote {file}")


@app.command(name="compare")
def compare_arms(
    settings: _SettingsName = "mini",
    overrides: _Overrides = None,
    run_dir: _RunDir = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of every arm; the first seed is the settings' own.")] = 5,
    arms: Annotated[str | None, typer.Option(help="Only these arms, separated by commas.")] = None,
    tries: Annotated[int, typer.Option(min=1, help="Learning rates of every arm, tried on the first seed.")] = 2,
    at_once: Annotated[
        int, typer.Option(min=1, help="Arms that are made side by side, as far as the cluster holds their workers.")
    ] = 1,
    sweep: Annotated[bool, typer.Option("--sweep", help="Train at two other thresholds of the router, too.")] = False,
    final: Annotated[bool, typer.Option("--final", help="Evaluate on test data, and record it.")] = False,
    world_seed: Annotated[
        int | None, typer.Option(help="With --final on miniworld: the seed that test scenes are drawn by.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare CAREVL with direct distillation and its own parts: same items, labels, base, tokens and tries.

    Arms: base, experts, distillation, soft_distillation, random_subset, high_only, phase1, carevl, carevl_consistency,
    carevl_experts. Figures go to RUN/compare.json and RUN/figures. Run it again after an interruption: what is there
    is not made again.

    Example: carevl compare mini --seeds 2 --arms base,distillation,carevl --run-dir runs/mini
    """
    from carevl.cluster.connect import ray_cluster
    from carevl.compare import report
    from carevl.compare import run as comparing
    from carevl.settings import load_settings

    tree, where = load_settings(settings, overrides or ()), _run(settings, run_dir)
    if world_seed is not None and not final:
        raise UserError("compare: --world-seed names the test scenes of --final; give both")
    plan = comparing.Plan(tuple(arms.split(",")) if arms else (), seeds, tries, sweep, at_once=at_once)
    test = comparing.Final(world_seed) if final else None
    comparing.check(tree, plan, test)
    with ray_cluster(tree.cluster):
        found = comparing.compare(tree, where, plan, test, _progress)
    for line in [json.dumps(found)] if as_json else report.lines(found):
        typer.echo(line)


@app.command(name="settings")
def show_settings(settings: _SettingsName = "mini", overrides: _Overrides = None) -> None:
    """Print the resolved settings with the documentation of every field.

    The output is a settings file: save it, change it, and give its name to `carevl run`.
    """
    from carevl.settings.loader import load_settings, reference

    for line in reference(load_settings(settings, overrides or ())):
        typer.echo(line)


@app.command()
def sources(
    path: Annotated[
        str | None, typer.Argument(help="File or directory of preference data, local or s3://, gs://.")
    ] = None,
    format_name: Annotated[
        str | None, typer.Option("--format", help="Read as this format; detected if absent.")
    ] = None,
    image_root: Annotated[str | None, typer.Option(help="Directory that image paths are relative to.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each file to read.")] = 1000,
) -> None:
    """List the preference formats that can be read, or tell what is found at a path.

    Without PATH: every format, the columns that it is known by, and the smallest row. With PATH: the format of each
    file, and the first of each kind of problem with its rows and images.

    Example: carevl sources data/rlaif_v --rows 100
    """
    from carevl.data import describe
    from carevl.data.images import ImageLimits
    from carevl.data.reading import Source

    if path is None:
        lines = describe.known()
    else:
        lines = describe.found(Source("source", path, format_name, image_root=image_root), rows, ImageLimits())
    for line in lines:
        typer.echo(line)


@app.command()
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


def _run(settings: str, run_dir: Path | None) -> Run:
    from carevl.store.run import Run

    return Run.at(run_dir or Path("runs") / Path(settings).stem)


@miniworld.command()
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


@miniworld.command()
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

    training.train(work, only)
    if install:
        training.install(work)


@miniworld.command()
def quality(
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write every figure to this file.")] = None,
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

    figures = measure(weights or WEIGHTS, seed=seed, n_items=items, n_sampled=sampled, say=_progress)
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(figures, indent=2) + "\n")
    typer.echo(table(figures))


def _progress(line: str) -> None:
    typer.echo(line, err=True)


def main() -> None:
    """Entry point: mistakes of the user end in one line and exit code 2."""
    try:
        app()
    except (OSError, ValueError, UserError) as error:
        typer.echo(f"carevl: {error}", err=True)
        sys.exit(2)
