"""What `carevl plan` tells beside the stages: rows, reservations, warnings, and times from a measured sample."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from carevl.cluster import resources
from carevl.cluster.connect import is_private, ray_cluster
from carevl.cluster.resources import Need, Supply, describe
from carevl.cluster.sizing import shares
from carevl.cluster.throughput import Rate, measure_rate, store_rate
from carevl.pipeline import core as pipeline
from carevl.stages import caption, score
from carevl.store.ingested import Ingested
from carevl.store.run import Run, RunError
from carevl.store.table import Table

if TYPE_CHECKING:
    from carevl.settings import Settings
    from carevl.settings.models import Model

_COMMIT = re.compile(r"[0-9a-f]{40}")


def unpinned(settings: Settings) -> list[str]:
    """A warning for every hub model whose weights may change between two runs."""
    experts = {f"experts.{n}": expert for n, expert in enumerate(settings.experts)}
    models: dict[str, Model] = {"captioner": settings.captioner, **experts, "judge": settings.judge}
    return [
        f"{place}: {model.path} may change between two runs; pin {place}.revision to a commit of 40 hex digits"
        for place, model in models.items()
        if not model.path.startswith("miniworld:") and not Path(model.path).is_dir()
        if not _COMMIT.fullmatch(model.revision or "")
    ]


def rows(ingested: Table) -> str:
    """How many rows there are, if they have been read."""
    manifest = ingested.manifest
    if manifest is None:
        return "rows are counted when ingest has run"
    return f"{manifest['rows_in']} source rows, {manifest['rows_out']} items of {manifest['images']} distinct images"


def reservations(wanted: Sequence[Need], there: Supply) -> Iterator[str]:
    """A line per stage: what each of its actors or workers reserves, how many there are, how many fit."""
    if wanted:
        yield f"{'reserves':16s} {'each':28s} {'actors':>8s} {'room for':>8s}   on {there.name}"
    for need in wanted:
        actors = f"{need.least}..{need.most}" if need.least < need.most else str(need.most)
        actors = "auto" if need.most == sys.maxsize else actors
        yield f"{need.stage:16s} {describe(need.each):28s} {actors:>8s} {need.places(there.nodes):8d}"


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


def tell(settings: Settings, where: Run, measured: bool, say: Callable[[str], None]) -> Iterator[str]:
    """What `carevl plan` prints.

    Raises:
        RunError: something that a stage reserves can never be had; the lines before it are told first.
    """
    planned = pipeline.plan(settings, where)
    for stage in planned:
        yield f"{stage.name:16s} {stage.fingerprint}  {stage.action}: {stage.reason}"
    yield rows(where.table_of("ingest", planned[0].fingerprint))
    yield from (f"warning: {problem}" for problem in unpinned(settings))
    pending = {stage.name for stage in planned if stage.action != "skip"}
    with ray_cluster(settings.cluster) if measured or not is_private(settings.cluster) else nullcontext():
        wanted = resources.needs(settings, pending)
        there = resources.supply(settings.cluster, wanted)
        yield from reservations(wanted, there)
        resources.check(wanted, there)
        if measured:
            yield from map(str, measure(settings, where, pending, say))


def measure(settings: Settings, where: Run, pending: Collection[str], say: Callable[[str], None]) -> Iterator[Estimate]:
    """Times the models of those of the stages `caption` and `score` that are pending, each in a task with the
    reservation of its pool, on one batch of rows, and keeps what the experts took for pools of size `auto`. The stages
    after them depend on what will be routed.

    Reads the sources first if that is pending.

    Raises:
        RunError: no row can be read.
    """
    if "ingest" in pending:
        pipeline.run(settings, where, say, "ingest")
    table = pipeline.tables(settings, where)["ingest"]
    counts: Mapping[str, Any] = table.manifest or {}
    wanted = {need.stage: need for need in resources.needs(settings)}
    nodes = resources.supply(settings.cluster, wanted.values()).nodes
    images, items = _sample(Ingested(table.directory), settings.captioner.pool.batch_size)
    captioner = caption.CaptionProcessor(settings.captioner)
    captions, rate = measure_rate(wanted["caption"].each, captioner, {"images": images})
    if "caption" in pending:
        yield Estimate("caption", counts["images"], len(images), rate, wanted["caption"].places(nodes))
    causes = pipeline.causes(settings, where)
    experts = {f"score/{expert.name}": expert for expert in settings.experts if f"score/{expert.name}" in pending}
    rates = {}
    for name, expert in experts.items():
        made_from = {"items": items, "captions": captions}
        _, rates[name] = measure_rate(wanted[name].each, score.ScoreProcessor(expert), made_from)
        store_rate(where, causes[name].fingerprint, expert.pool, rates[name])
    pools = {name: expert.pool for name, expert in experts.items()}
    speeds = {name: rate.rows_per_second for name, rate in rates.items()}
    together = shares(pools, settings.data.parts, speeds, nodes)
    for name, rate in rates.items():
        actors = together.get(name, wanted[name].places(nodes))
        yield Estimate(name, counts["rows_out"], len(items), rate, actors)


def _sample(ingested: Ingested, size: int) -> tuple[pa.Table, pa.Table]:
    """The first images without an error, and their items."""
    images: list[pa.Table] = []
    items: list[pa.Table] = []
    missing = size
    for number in ingested.images.parts():
        part = ingested.images.read(number)
        images.append(part.filter(part["error"].is_null()).slice(0, missing))
        missing -= len(images[-1])
        rows = ingested.items.read(number)
        mine = pc.is_in(rows["image_id"], value_set=images[-1]["image_id"].combine_chunks())
        items.append(rows.filter(pc.and_(mine, rows["error"].is_null())))
        if not missing:
            break
    if missing == size:
        raise RunError("no row can be read, so that nothing can be measured")
    return pa.concat_tables(images), pa.concat_tables(items)
