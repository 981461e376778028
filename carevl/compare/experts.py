"""The experts as the judge: they read captions of the benchmark's images, and the fitted router decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from carevl.compare.stages import VERSION, run_tables
from carevl.confidence.pairs import Pairs
from carevl.confidence.policies import fit_router
from carevl.data.images import ImageLimits, identify, image_id
from carevl.data.rows import RowError
from carevl.pipeline.keys import stage_keys
from carevl.stages import caption, evaluate, score
from carevl.stages.base import Counts, RunContext, Stage, reads
from carevl.stages.route import read_fitting
from carevl.store.schemas import IMAGES, ITEMS, row_error

if TYPE_CHECKING:
    from carevl.benchmarks.rows import Row
    from carevl.data.drawn import DataRoot
    from carevl.settings.tree import Settings


def probabilities(context: RunContext, tests: Settings, rows: Sequence[Row]) -> dict[str, float | None]:
    """Return the experts' view of a benchmark's pairs, by captions made and scored as those of the items were.

    Args:
        context: with the keys of items, captions and scores alone, all there: the router is fitted on them.
        tests: settings that name the benchmark.

    Returns:
        Key of a row to the probability that its first response is better; None where no expert has an opinion.
    """
    settings, run = context.settings, context.run
    stages = (_row_stage(rows, tests), caption.STAGE, score.STAGE)
    on_rows = RunContext(settings, run, stage_keys(settings, run, stages), context.log)
    run_tables(on_rows, list(on_rows.keys), stages)
    experts = [expert.name for expert in settings.caption_experts]
    scoring = score.STAGE.tables(settings)
    fitting = read_fitting(context.ingested.items, [context.table(name) for name in scoring], experts)
    router = fit_router(settings.router, fitting.labelled_for(settings), fitting.unlabelled)
    scores = pa.concat_tables([on_rows.table(name).read() for name in scoring])
    pairs = Pairs.from_arrow(on_rows.ingested.items.read(), scores, experts, router.ensemble.views)
    routed = router.route(pairs).select(["item_id", "probability"]).to_pylist()
    return {row["item_id"]: row["probability"] for row in routed}


def _row_stage(rows: Sequence[Row], tests: Settings) -> Stage:
    """Return the stage `ingest` of a benchmark's rows, their labels left out."""

    def fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
        del table
        benchmarks = evaluate.benchmark_inputs(tests, root)["benchmarks"]
        return {"compare": VERSION, "parts": settings.data.parts, "benchmarks": benchmarks}

    def run(context: RunContext) -> Counts:
        [table] = context.pending
        ingested, n_parts = context.ingested, context.settings.data.parts
        pairs = [_images_and_item(row) for row in rows]
        errors = sum(item["error"] is not None for _, item in pairs)
        for number in range(n_parts):
            part = pairs[number::n_parts]
            images = {image["image_id"]: image for shown, _ in part for image in shown}
            ingested.images.write(number, pa.Table.from_pylist(list(images.values()), IMAGES))
            ingested.borrowed.write(number, pa.Table.from_pylist([], IMAGES))
            ingested.items.write(number, pa.Table.from_pylist([item for _, item in part], ITEMS))
        return {table: {"rows_in": len(pairs), "rows_out": len(pairs), "errors": errors}}

    return Stage("ingest", reads(), fingerprint_inputs, run, directory="compare/rows")


def _images_and_item(row: Row) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    images, error = [], None
    for shown in row.images:
        data = shown.read()
        facts: Mapping[str, Any] = {}
        try:
            identity = identify(data, ImageLimits())
            facts = {"format": identity.format, "width": identity.width, "height": identity.height}
        except RowError as problem:
            error = row_error("compare", "image", str(problem))
        images.append({"image_id": image_id(data), "bytes": data, **facts, "error": error})
    item = {
        "item_id": row.key,
        "images": [image["image_id"] for image in images],
        "places": row.turn.places,
        "turns": [],
        "question": row.question,
        "responses": row.responses,
        "conflict": False,
        "sources": [],
        "split": "test",
        "group": row.group,
        "error": error,
    }
    return images, item
