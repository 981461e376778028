"""Time responders, captioner and experts on a batch of rows, and estimate what their stages will take."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from carevl.cluster.resources import supply
from carevl.cluster.sizing import share_actors
from carevl.cluster.throughput import Rate, measure_rate, store_rate
from carevl.models.locate import prepare_models
from carevl.pipeline.admission import reservations
from carevl.pipeline.downloads import models_by_setting
from carevl.pipeline.keys import stage_keys
from carevl.pipeline.run import run_pipeline
from carevl.stages import caption, gather, respond, score
from carevl.store.ingested import Ingested
from carevl.store.run import Run, RunError
from carevl.store.schemas import BORROWED_CAPTIONS
from carevl.store.table import Table

if TYPE_CHECKING:
    from carevl.settings.tree import Settings


@dataclass(frozen=True)
class Estimate:
    """What a stage will take: `rows` on `actors` actors of the same rate, measured on `sampled` rows."""

    stage: str
    rows: int
    sampled: int
    rate: Rate
    actors: int

    @property
    def seconds(self) -> float:
        """The whole stage, alone on the cluster."""
        return self.rate.load_seconds + self.rows / (self.rate.rows_per_second * self.actors)

    def __str__(self) -> str:
        return (
            f"{self.stage:16s} {self.rows} rows, {self.actors} actors: about {self.seconds:.0f} s "
            f"({self.rate.rows_per_second:.3g} rows/s each, from {self.sampled} rows; "
            f"{self.rate.load_seconds:.0f} s to load)"
        )


def measure(settings: Settings, run: Run, pending: Collection[str], log: Callable[[str], None]) -> Iterator[Estimate]:
    """Time the models of those of the stages `respond`, `caption` and `score` that are pending, each in a task with the
    reservation of its pool, on one batch of rows, and keep what the experts took for pools of size `auto`. Experts read
    what the responders answered to that batch. The stages after them depend on what will be routed.

    Read the sources first if that is pending.

    Raises:
        RunError: no row can be read.
    """
    if "ingest" in pending:
        run_pipeline(settings, run, log, "ingest")
    prepare_models(models_by_setting(settings, {"caption", *pending}), log)
    ingested = Ingested(run.table(stage_keys(settings, run)["ingest"]).directory)
    counts: Mapping[str, Any] = Table(ingested.directory).manifest or {}
    needs = {need.stage: need for need in reservations(settings)}
    nodes = supply(settings.cluster, needs.values()).nodes
    images, items = _sample(ingested, settings.captioner.pool.batch_size)
    answers = []
    for responder in settings.respond.models:
        name, processor = f"respond/{responder.name}", respond.RespondProcessor.of(settings, responder)
        tables = {"items": items.filter(respond.are_questions(items)), "images": images, "borrowed": images.slice(0, 0)}
        answered, rate = measure_rate(needs[name].resources, processor, tables)
        answers.append(answered)
        if name in pending:
            actors = needs[name].count_fitting(nodes)
            yield Estimate(name, counts.get("questions", 0), len(tables["items"]), rate, actors)
    if answers:
        items = gather.give_responses(settings, items, pa.concat_tables(answers))
    borrowed = pa.Table.from_pylist([], BORROWED_CAPTIONS)
    captioner = caption.CaptionProcessor(settings.captioner, settings.data.resize_pixels)
    captions, rate = measure_rate(needs["caption"].resources, captioner, {"images": images})
    if "caption" in pending:
        yield Estimate("caption", counts["images"], len(images), rate, needs["caption"].count_fitting(nodes))
    keys = stage_keys(settings, run)
    experts = {f"score/{expert.name}": expert for expert in settings.experts if f"score/{expert.name}" in pending}
    rates = {}
    for name, expert in experts.items():
        tables = {"items": items, "captions": captions, "borrowed_captions": borrowed}
        _, rates[name] = measure_rate(needs[name].resources, score.ScoreProcessor(expert), tables)
        store_rate(run, keys[name].fingerprint, expert.pool, rates[name])
    pools = {name: expert.pool for name, expert in experts.items()}
    speeds = {name: rate.rows_per_second for name, rate in rates.items()}
    together = share_actors(pools, settings.data.parts, speeds, nodes)
    for name, rate in rates.items():
        actors = together.get(name, needs[name].count_fitting(nodes))
        yield Estimate(name, counts["rows_out"], len(items), rate, actors)


def _sample(ingested: Ingested, size: int) -> tuple[pa.Table, pa.Table]:
    """Return the first images without an error, and the items that show nothing else."""
    images: list[pa.Table] = []
    items: list[pa.Table] = []
    missing = size
    for number in ingested.images.parts():
        part = ingested.images.read(number)
        images.append(part.filter(part["error"].is_null()).slice(0, missing))
        missing -= len(images[-1])
        rows = ingested.items.read(number)
        mine = set(images[-1]["image_id"].to_pylist())
        whole = [bool(shown) and mine.issuperset(shown) for shown in rows["images"].to_pylist()]
        items.append(rows.filter(pc.and_(pa.array(whole, pa.bool_()), rows["error"].is_null())))
        if not missing:
            break
    if missing == size:
        raise RunError("no row can be read, so that nothing can be measured")
    return pa.concat_tables(images), pa.concat_tables(items)
