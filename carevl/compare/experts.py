"""The experts as the judge: they read captions of the benchmark's images, and the fitted router decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from carevl.compare.chain import VERSION, rebased
from carevl.compare.stages import run_stages
from carevl.confidence.pairs import Pairs
from carevl.confidence.policies import fit_router
from carevl.data.drawn import DataRoot
from carevl.data.images import ImageLimits, identify, image_id
from carevl.data.rows import RowError
from carevl.stages import evaluate
from carevl.stages.base import Context, Counts
from carevl.stages.makers import MAKERS
from carevl.stages.route import read_fitting
from carevl.store.schemas import IMAGES, ITEMS, row_error
from carevl.store.stage_key import StageKey

if TYPE_CHECKING:
    from carevl.benchmarks.rows import Row
    from carevl.settings import Settings


def probabilities(context: Context, tests: Settings, rows: Sequence[Row]) -> dict[str, float | None]:
    """What the experts think of a benchmark's pairs, reading captions made and scored as those of the items were.

    Args:
        context: with the causes of items, captions and scores alone, all there: the router is fitted on them.
        tests: settings that name the benchmark.

    Returns:
        Key of a row to the probability that its first response is better; None where no expert has an opinion.
    """
    settings, where = context.settings, context.where
    experts = [expert.name for expert in settings.experts]
    benchmarks = evaluate.facts(tests, DataRoot.of(tests, where))["benchmarks"]
    asked = StageKey("compare/rows", {"compare": VERSION, "parts": settings.data.parts, "benchmarks": benchmarks})
    causes = rebased(context.causes, where, {"ingest": asked})
    scoring = [f"score/{name}" for name in experts]
    about = Context(settings, where, causes, context.say)
    run_stages(about, ["ingest", "caption", *scoring], MAKERS | {"ingest": _Rows(rows)})
    fitting = read_fitting(context.ingested.items, [context.table(name) for name in scoring], experts)
    router = fit_router(settings.router, fitting.labelled, fitting.unlabelled)
    scores = pa.concat_tables([about.table(name).read() for name in scoring])
    pairs = Pairs.from_arrow(about.ingested.items.read(), scores, experts, router.ensemble.views)
    routed = router.route(pairs).select(["item_id", "probability"]).to_pylist()
    return {row["item_id"]: row["probability"] for row in routed}


@dataclass(frozen=True)
class _Rows:
    """Makes `ingest` of a benchmark's rows, their labels left out."""

    rows: Sequence[Row]

    def __call__(self, context: Context, pending: list[str]) -> Counts:
        [name] = pending
        ingested, n_parts = context.ingested, context.settings.data.parts
        made = [_image_and_item(row) for row in self.rows]
        errors = sum(item["error"] is not None for _, item in made)
        for number in range(n_parts):
            part = made[number::n_parts]
            images = {image["image_id"]: image for image, _ in part}
            ingested.images.write(number, pa.Table.from_pylist(list(images.values()), IMAGES))
            ingested.items.write(number, pa.Table.from_pylist([item for _, item in part], ITEMS))
        return {name: {"rows_in": len(made), "rows_out": len(made), "errors": errors}}


def _image_and_item(row: Row) -> tuple[dict[str, Any], dict[str, Any]]:
    data = row.image.read() if row.image else b""
    facts: Mapping[str, Any] = {}
    error = None
    try:
        found = identify(data, ImageLimits())
        facts = {"format": found.format, "width": found.width, "height": found.height}
    except RowError as problem:
        error = row_error("compare", "image", str(problem))
    image = {"image_id": image_id(data), "bytes": data, **facts, "error": error}
    item = {
        "item_id": row.key,
        "image_id": image_id(data),
        "question": row.question,
        "responses": row.responses,
        "conflict": False,
        "sources": [],
        "split": "test",
        "group": row.group,
        "error": error,
    }
    return image, item
