"""How each stage is made from the tables before it: the path of a row through the program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from carevl.cluster import throughput
from carevl.cluster.jobs import PoolJob
from carevl.stages import caption, demonstrate, evaluate, ingest, phases, route, sample, sampling, score, select
from carevl.stages.base import Context, Counts
from carevl.store.run import RunError
from carevl.store.table import Table

if TYPE_CHECKING:
    from carevl.settings import Settings
    from carevl.settings.models import Judge

Maker = Callable[[Context, list[str]], Counts]
"""Makes the named stages and returns the counts of each."""

_JUDGMENT = ("task", "order", "sample")


def _ingest(context: Context, pending: list[str]) -> Counts:
    [name] = pending
    counts = read_sources(context, context.ingested.directory)
    allowed = context.settings.max_error_fraction
    if counts["errors"] > allowed * counts["rows_out"]:
        raise RunError(
            f"ingest: {counts['errors']} of {counts['rows_out']} rows cannot be used, more than max_error_fraction = "
            f"{allowed:.1%} allows: {'; '.join(context.ingested.items.problems(3))}; mend the data, or allow more"
        )
    return {name: counts | context.where.same(context.causes[name], counts["contents"])}


def read_sources(context: Context, directory: Path) -> dict[str, Any]:
    """Writes images and items into a directory; returns their counts."""

    def tell(line: str) -> None:
        context.say(f"{'ingest':16s} {line}")

    def progress(rows: int, errors: int) -> None:
        tell(f"{rows} rows read, {errors} errors")

    return ingest.run_ingest(context.settings, context.where, directory, progress, tell)


def _caption(context: Context, pending: list[str]) -> Counts:
    del pending
    captioner = context.settings.captioner
    job = PoolJob(
        name="caption",
        processor=caption.CaptionProcessor(captioner),
        sources={"images": context.ingested.images},
        target=context.table("caption"),
        pool=captioner.pool,
        key="image_id",
        identity=("view",),
    )
    return context.pools([job])


def _score(context: Context, pending: list[str]) -> Counts:
    jobs = [
        PoolJob(
            name=f"score/{expert.name}",
            processor=score.ScoreProcessor(expert),
            sources={"items": context.ingested.items, "captions": context.table("caption")},
            target=context.table(f"score/{expert.name}"),
            pool=expert.pool,
            key="item_id",
            identity=("view",),
        )
        for expert in context.settings.experts
        if f"score/{expert.name}" in pending
    ]
    shared = len(jobs) > 1 and any(job.pool.auto for job in jobs)
    rates = throughput.measure_rates(context.where, jobs, context.say) if shared else None
    return context.pools(jobs, rates=rates)


def _route(context: Context, pending: list[str]) -> Counts:
    [name] = pending
    scores = [context.table(f"score/{expert.name}") for expert in context.settings.experts]
    return {name: route.run_route(context.settings, context.ingested.items, scores, context.table(name))}


def _judged(context: Context, name: str, judge: Judge, asking: sampling.Asking, target: Table) -> Mapping[str, Any]:
    """Asks a judge about every item in the pools."""
    images, items = context.ingested.images, context.ingested.items
    job = PoolJob(
        name=name,
        processor=sampling.JudgeProcessor(judge, asking),
        sources={"items": items, "images": images, "routes": context.table("route")},
        target=target,
        pool=judge.pool,
        key="item_id",
        identity=_JUDGMENT,
        expected_keys=asking.wanted,
    )
    return context.pools([job])[name]


def _demonstrate(context: Context, pending: list[str]) -> Counts:
    [name] = pending
    settings, judged = context.settings, context.table(name, "judgments")
    counts = _judged(context, name, settings.judge, demonstrate.asking(settings), judged)
    target = context.table(name, "targets")
    _choose(context, demonstrate.choose, judged, target)
    evidence = target.read(columns=["evidence"])["evidence"].to_pylist()
    return {name: {**counts, "targets": len(evidence), "with_evidence": sum(evidence)}}


def _sample(context: Context, pending: list[str]) -> Counts:
    [name] = pending
    judge = trained_judge(context, "sft")
    return {name: _judged(context, name, judge, sample.asking(context.settings), context.table(name))}


def _select(context: Context, pending: list[str]) -> Counts:
    [name] = pending
    sampled = context.table("sample")
    n_pairs = _choose(context, select.choose, sampled, context.table(name))
    manifest = sampled.manifest or {}
    return {name: {"rows_in": manifest.get("rows_out", 0), "rows_out": n_pairs, "errors": 0}}


def _choose(
    context: Context,
    choose: Callable[[Settings, pa.Table, pa.Table, pa.Table], pa.Table],
    judged: Table,
    target: Table,
) -> int:
    """Applies a pure function to every part; returns how many rows it chose."""
    n_rows = 0
    items, routes = context.ingested.items, context.table("route")
    for number in items.parts():
        chosen = choose(context.settings, items.read(number), routes.read(number), judged.read(number))
        target.write(number, chosen)
        n_rows += chosen.num_rows
    return n_rows


def _sft(context: Context, pending: list[str]) -> Counts:
    [name] = pending
    targets, directory = context.table("demonstrate", "targets"), context.table(name).directory
    counts = phases.run_sft(context.settings, context.ingested, targets, directory, context.training(name))
    return {name: counts}


def _dpo(context: Context, pending: list[str]) -> Counts:
    [name] = pending
    settings, directory = context.settings, context.table(name).directory
    columns = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    rows, referenced = Table(directory / "rows"), Table(directory / "reference")
    filled = phases.write_rows(context.table("select"), columns, context.ingested, rows)
    if not filled:
        raise RunError(
            "dpo: no pair of judgments was selected, so there is nothing to prefer; lower select.min_gap, or raise "
            "sample.samples or sample.temperature so that judgments differ"
        )
    judge = _merged(context, "sft")
    job = PoolJob(
        name="reference",
        processor=phases.ReferenceProcessor(judge, settings.dpo),
        sources={"pairs": rows},
        target=referenced,
        pool=settings.judge.pool,
        key="item_id",
        identity=("prompt", "chosen", "rejected"),
    )
    context.pools([job], filled)
    targets = Table(context.table("sft").directory / "rows")
    replay = [targets.part(number) for number in targets.parts()]
    files = [referenced.part(number) for number in filled]
    return {name: phases.run_dpo(settings, context.ingested, judge, files, replay, directory, context.training(name))}


def trained_judge(context: Context, stage: str | None) -> Judge:
    """The judge that a phase made, or the base; with the settings of the base."""
    judge = context.settings.judge
    if stage is None:
        return judge
    adapter = _merged(context, stage).with_name("adapter")
    if judge.serve == "merged" or not adapter.exists():
        return judge.model_copy(update={"path": str(_merged(context, stage))})
    began_with = {"sft": judge.path, "dpo": str(_merged(context, "sft"))}[stage]
    return judge.model_copy(update={"path": began_with, "adapter": str(adapter)})


def _merged(context: Context, stage: str) -> Path:
    return (context.table(stage).directory / "judge").absolute()


def _evaluate(context: Context, pending: list[str]) -> Counts:
    trained = {name: evaluate.JUDGES[name.removeprefix("evaluate/")] for name in pending}
    judges = {name: trained_judge(context, trained[name]) for name in pending}
    return evaluate.run_evaluations(context, judges, retry=context.retry)


MAKERS: dict[str, Maker] = {
    "ingest": _ingest,
    "caption": _caption,
    "score": _score,
    "route": _route,
    "demonstrate": _demonstrate,
    "sft": _sft,
    "sample": _sample,
    "select": _select,
    "dpo": _dpo,
    "evaluate": _evaluate,
}
