"""Stage `score`: every expert reads captions, question and response, and scores every response of an item.

Each item is also scored without its captions (view `none`): what is left then was decided by the text alone. An item
about text alone is scored once.

An input of more tokens than the expert reads is an error of its row, or, with `too_long: summarise`, the caption is
shortened by whole sentences from its end until the input fits; question and responses are never cut. The row says in
`caption_read` what share of the captions' characters was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from PIL.Image import new as new_image

from carevl.cluster import throughput
from carevl.cluster.jobs import PoolJob, Processor
from carevl.cluster.resources import for_pool
from carevl.confidence.pairs import NO_CAPTION
from carevl.data.pictures import decode_shown, picture, shown_images
from carevl.data.shown_videos import captioned_turns
from carevl.judging.turns import turns_of
from carevl.models.conversations import Encoded
from carevl.models.experts import EXPERT_KINDS, load_expert
from carevl.models.experts.inputs import ExpertInput
from carevl.models.row_errors import TOO_LONG, Failure
from carevl.stages.base import (
    PARTS,
    Counts,
    LoadedModel,
    RunContext,
    Stage,
    in_pool,
    pixel_inputs,
    reads_items,
    without_inputs,
)
from carevl.stages.caption import VIEW
from carevl.store.ingested import borrowed_captions
from carevl.store.schemas import EXPERT_TOKENS, SCORES, row_error

if TYPE_CHECKING:
    from carevl.cluster.resources import Reservation
    from carevl.data.drawn import DataRoot
    from carevl.settings.models import Expert
    from carevl.settings.tree import Settings
    from carevl.store.table import Table

VERSION = 3


def fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
    """Return what an expert's scores depend on, apart from items and captions."""
    del root
    expert = expert_of(settings, table)
    facts = {
        "version": VERSION,
        "weights": EXPERT_KINDS[expert.kind].fingerprint(expert),
        **expert.model_dump(include={"name", "kind", "engine", "dtype", "max_model_len", "template", "too_long"}),
        **(pixel_inputs(settings) if EXPERT_KINDS[expert.kind].sees_images else {}),
        **expert.computation,
    }
    return {"expert": facts}


Scores = list[list[float] | Failure]


@dataclass
class ScoreProcessor(Processor):
    """Turns a part of `items` and `captions` into a part of `scores`."""

    expert: Expert
    resize_pixels: int | None = None
    score_rows: Callable[..., Scores] = field(init=False, repr=False)

    def setup(self) -> None:
        self.score_rows = load_expert(self.expert)

    @cached_property
    def encode(self) -> Callable[..., list[list[Encoded]]] | None:
        """The expert's tokenizer; None for one that reads text."""
        return EXPERT_KINDS[self.expert.kind].encoder(self.expert)

    def read(self, tables: Mapping[str, pa.Table]) -> tuple[list[dict[str, Any]], list[ExpertInput]]:
        """Return the rows of a part of `scores` without their scores, and the inputs of those that have no error."""
        return _expert_inputs(self.expert, tables)

    def preprocess(self, tables: Mapping[str, pa.Table]) -> Mapping[str, pa.Table]:
        """Decode what the expert sees, or tokenise what it reads: a row each of the table `tokens`."""
        if "images" in tables:
            return decode_shown(tables, resize_pixels=self.resize_pixels)
        if self.encode is None:
            return tables
        _, inputs = self.read(tables)
        encoded = self.encode([entry.row(self.expert) for entry in inputs])
        rows = [{"ids": [text.ids for text in texts], "types": [text.types for text in texts]} for texts in encoded]
        return {**tables, "tokens": pa.Table.from_pylist(rows, EXPERT_TOKENS)}

    def row_inputs(self, tables: Mapping[str, pa.Table]) -> Mapping[tuple[Any, ...], Any]:
        """The captions that are read, by image and view; what is asked and answered is in the item's key."""
        captions = captions_by_image(tables)
        return {
            (item["item_id"],): [captions.get(name, {}) for name in captioned_turns(item, captions)[1]]
            for item in tables["items"].to_pylist()
            if item["error"] is None
        }

    def process(self, tables: Mapping[str, pa.Table]) -> pa.Table:
        rows, inputs = self.read(tables)
        if "images" in tables:
            inputs = self._with_images(rows, inputs, tables)
        results = self._ask(inputs, _tokens(tables["tokens"]) if "tokens" in tables else None)
        read: Sequence[ExpertInput] = inputs
        if self.expert.too_long == "summarise":
            read, results = summarise(self._ask, inputs, results)
        good = (row for row in rows if row["error"] is None)
        for row, whole, part, scores in zip(good, inputs, read, results, strict=True):
            if isinstance(scores, Failure):
                row["error"] = row_error("score", scores.kind, f"{self.expert.name}: {scores.message}")
            else:
                row["scores"] = scores
                row["caption_read"] = part.n_characters / whole.n_characters if part.n_characters else None
        return pa.Table.from_pylist(rows, SCORES)

    def _with_images(
        self, rows: Sequence[Mapping[str, Any]], inputs: Sequence[ExpertInput], tables: Mapping[str, pa.Table]
    ) -> list[ExpertInput]:
        """Return the inputs with their images; without captions, with as large grey ones."""
        names = dict(zip(tables["items"]["item_id"].to_pylist(), tables["items"]["images"].to_pylist(), strict=True))
        good = [row for row in rows if row["error"] is None]
        needed = {name for row in good for name in names[row["item_id"]]}
        images = {
            row["image_id"]: picture(row, resize_pixels=self.resize_pixels)
            for row in shown_images(tables).to_pylist()
            if row["image_id"] in needed
        }
        greys = {image_id: new_image("RGB", image.size, (127, 127, 127)) for image_id, image in images.items()}
        shown = [greys if row["view"] == NO_CAPTION else images for row in good]
        return [
            replace(entry, images=tuple(pictures[name] for name in names[row["item_id"]]))
            for row, entry, pictures in zip(good, inputs, shown, strict=True)
        ]

    def _ask(self, inputs: Sequence[ExpertInput], tokens: Sequence[Sequence[Encoded]] | None = None) -> Scores:
        size = self.expert.pool.batch_size
        rows: list[Any] = [
            entry.image_row() if EXPERT_KINDS[self.expert.kind].sees_images else entry.row(self.expert)
            for entry in inputs
        ]
        if tokens is not None:
            rows = [(asked, encoded, bare) for (asked, _, bare), encoded in zip(rows, tokens, strict=True)]
        return [scored for start in range(0, len(rows), size) for scored in self.score_rows(rows[start : start + size])]


def _tokens(table: pa.Table) -> list[list[Encoded]]:
    return [list(map(Encoded, row["ids"], row["types"])) for row in table.to_pylist()]


def _expert_inputs(expert: Expert, tables: Mapping[str, pa.Table]) -> tuple[list[dict[str, Any]], list[ExpertInput]]:
    captions = captions_by_image(tables)
    rows: list[dict[str, Any]] = []
    inputs: list[ExpertInput] = []
    for item in tables["items"].to_pylist():
        turns, names = captioned_turns(item, captions) if item["error"] is None else ((), [])
        if item["error"] is None and EXPERT_KINDS[expert.kind].sees_images:
            turns = turns_of(item)
        for view, texts in _views(item, names, captions).items():
            error = item["error"]
            if error is None and texts is not None and None in texts:
                error = row_error("score", "no caption", "the image has no caption")
            rows.append({"item_id": item["item_id"], "expert": expert.name, "view": view, "error": error})
            if error is None:
                read = None if texts is None else tuple(text or "" for text in texts)
                inputs.append(ExpertInput(turns, item["responses"], read))
    return rows, inputs


def _views(
    item: Mapping[str, Any], names: Sequence[str], captions: Mapping[str, Mapping[str, str | None]]
) -> dict[str, list[str | None] | None]:
    """Return what an item is read with: view to the captions of what it shows, None of one without; without: None.

    There are none to leave out where there are no images.

    Args:
        names: of its captions.
    """
    if item["error"] is not None:
        return {VIEW: None, NO_CAPTION: None}
    if not names:
        return {VIEW: None}
    of_image = [captions.get(name, {}) for name in names]
    views = list(of_image[0]) or [VIEW]
    return {**{view: [own.get(view) for own in of_image] for view in views}, NO_CAPTION: None}


def captions_by_image(tables: Mapping[str, pa.Table]) -> dict[str, dict[str, str | None]]:
    """Return the captions of an image by view, None for one that has an error."""
    captions: dict[str, dict[str, str | None]] = {}
    for row in tables["captions"].to_pylist():
        captions.setdefault(row["image_id"], {})[row["view"]] = row["text"] if row["error"] is None else None
    for row in tables["borrowed_captions"].to_pylist():
        captions.setdefault(row["image_id"], {})[row["view"]] = row["text"]
    return captions


def summarise(
    ask: Callable[[Sequence[ExpertInput]], Scores], inputs: Sequence[ExpertInput], results: Scores
) -> tuple[Sequence[ExpertInput], Scores]:
    """Return what was read in the end, and the scores: captions of too long inputs lose sentences until they fit.

    An input that is too long with one sentence, or without a caption, keeps its error.

    Args:
        results: the scores of all `inputs`.
    """
    read, results = list(inputs), list(results)
    while True:
        long = {
            i: shorter
            for i, scores in enumerate(results)
            if isinstance(scores, Failure) and scores.kind == TOO_LONG and (shorter := read[i].shorter())
        }
        if not long:
            return read, results
        for i, scores in zip(long, ask(list(long.values())), strict=True):
            read[i], results[i] = long[i], scores


def run(context: RunContext) -> Counts:
    """Score every item by every pending expert, side by side in a pool each."""
    jobs = [expert_job(context, table, ScoreProcessor) for table in context.pending]
    shared = len(jobs) > 1 and any(job.pool.auto for job in jobs)
    rates = throughput.measure_rates(context.run, jobs, context.log) if shared else None
    return context.run_pools(jobs, rates=rates)


def expert_job(
    context: RunContext,
    table: str,
    processor: type[ScoreProcessor],
    expected_keys: Callable[[Mapping[str, pa.Table]], Iterable[str]] | None = None,
    **tables: str,
) -> PoolJob:
    """Return the job of an expert's pool.

    Args:
        table: the pending table of the expert.
        expected_keys: as in `PoolJob`.
        tables: what the processor reads beside items, captions and images: its name for a table to that table.
    """
    expert, target = expert_of(context.settings, table), context.table(table)
    read = {"captions": ("caption",), "borrowed_captions": ("caption", "borrowed")}
    read |= {name: (source,) for name, source in tables.items()}
    return PoolJob(
        name=table,
        processor=processor(expert, context.settings.data.resize_pixels),
        sources=_sources(context, expert) | {name: context.table(source) for name, source in tables.items()},
        target=target,
        pool=expert.pool,
        key="item_id",
        identity=("view",),
        expected_keys=expected_keys,
        earlier=context.earlier(table, target, **read),
    )


def _sources(context: RunContext, expert: Expert) -> dict[str, Table]:
    ingested = context.ingested
    sources = {
        "items": ingested.items,
        "captions": context.table("caption"),
        "borrowed_captions": borrowed_captions(context.table("caption")),
    }
    if not EXPERT_KINDS[expert.kind].sees_images:
        return sources
    return {**sources, "images": ingested.images, "borrowed": ingested.borrowed}


def members(settings: Settings) -> list[str]:
    """Return the names of the experts that read captions."""
    return [expert.name for expert in settings.caption_experts]


def expert_of(settings: Settings, table: str) -> Expert:
    """Return the expert of one of the tables that have one for each."""
    name = table.partition("/")[2]
    return next(expert for expert in settings.experts if expert.name == name)


def pools_of(stage: str, members: Callable[[Settings], Sequence[str]]) -> Callable[[Settings], list[Reservation]]:
    """Return what the pools of a stage reserve that has one for each expert among its members."""

    def reservations(settings: Settings) -> list[Reservation]:
        names, experts = members(settings), enumerate(settings.experts)
        return [
            for_pool(f"{stage}/{expert.name}", f"experts.{n}.pool", expert.pool)
            for n, expert in experts
            if expert.name in names
        ]

    return reservations


def models(settings: Settings, table: str) -> list[LoadedModel]:
    """Return the expert of a table, if it is of a kind that loads weights."""
    expert = expert_of(settings, table)
    setting = f"experts.{settings.experts.index(expert)}"
    return [in_pool(setting, expert)] if EXPERT_KINDS[expert.kind].loads_weights(expert) else []


STAGE = Stage(
    name="score",
    members=members,
    inputs=reads_items("caption"),
    fingerprint_inputs=fingerprint_inputs,
    run=run,
    reservations=pools_of("score", members),
    models=models,
    retryable="score",
    row_facts=without_inputs,
    contents=PARTS,
)
