"""What `carevl plan` tells beside the stages: rows, reservations, warnings, and times from a measured sample."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from carevl import pipeline, resources
from carevl.cluster import is_private, ray_cluster
from carevl.resources import Need, Supply, describe
from carevl.runs import Run, RunError
from carevl.stages import caption, score
from carevl.stages.ingest import Ingested

if TYPE_CHECKING:
    from carevl.config import Model, Settings
    from carevl.inference.pools import Work

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


def rows(settings: Settings, where: Run) -> str:
    """How many rows there are, if they have been read."""
    manifest = pipeline.tables(settings, where)["ingest"].manifest
    if manifest is None:
        return "rows are counted when ingest has run"
    return f"{manifest['rows_in']} source rows, {manifest['rows_out']} items of {manifest['images']} distinct images"


def reservations(wanted: Sequence[Need], there: Supply) -> Iterator[str]:
    """A line per stage: what each of its actors or workers reserves, how many there are, how many fit."""
    if wanted:
        yield f"{'reserves':16s} {'each':28s} {'actors':>8s} {'room for':>8s}   on {there.name}"
    for need in wanted:
        actors = f"{need.least}..{need.most}" if need.least < need.most else str(need.most)
        yield f"{need.stage:16s} {describe(need.each):28s} {actors:>8s} {need.places(there.nodes):8d}"


@dataclass(frozen=True)
class Estimate:
    """What a stage will take: `rows` at `rate` rows per second and actor on `actors` actors, once they have loaded."""

    stage: str
    rows: int
    sampled: int
    load_seconds: float
    rate: float
    actors: int

    @property
    def seconds(self) -> float:
        """The whole stage, alone on the cluster."""
        return self.load_seconds + self.rows / (self.rate * self.actors)

    def __str__(self) -> str:
        return (
            f"{self.stage:16s} {self.rows} rows, {self.actors} actors: about {self.seconds:.0f} s "
            f"({self.rate:.3g} rows/s each, from {self.sampled} rows; {self.load_seconds:.0f} s to load)"
        )


def tell(settings: Settings, where: Run, measured: bool, say: Callable[[str], None]) -> Iterator[str]:
    """What `carevl plan` prints.

    Raises:
        RunError: something that a stage reserves can never be had; the lines before it are told first.
    """
    planned = pipeline.plan(settings, where)
    for stage in planned:
        yield f"{stage.name:16s} {stage.fingerprint}  {stage.action}: {stage.reason}"
    yield rows(settings, where)
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
    reservation of its pool, on one batch of rows. The stages after them depend on what will be routed.

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
    captions, seconds = _timed(wanted["caption"], caption.work, settings.captioner, {"images": images})
    if "caption" in pending:
        yield Estimate("caption", counts["images"], len(images), *seconds, wanted["caption"].places(nodes))
    for expert in settings.experts:
        name = f"score/{expert.name}"
        if name in pending:
            _, seconds = _timed(wanted[name], score.work, expert, {"items": items, "captions": captions})
            yield Estimate(name, counts["rows_out"], len(items), *seconds, wanted[name].places(nodes))


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


def _timed(
    need: Need, make: Callable[..., Work], model: Model, tables: Mapping[str, pa.Table]
) -> tuple[pa.Table, tuple[float, float]]:
    """Does the work once where Ray would put an actor of the pool; returns its rows and (seconds to load, rows/s)."""
    import ray

    def work() -> tuple[pa.Table, tuple[float, float]]:
        started = time.monotonic()
        loaded = make(model)
        first = next(iter(tables))
        loaded({**tables, first: tables[first].slice(0, 1)})
        ready = time.monotonic()
        made = loaded(tables)
        return made, (ready - started, len(tables[first]) / (time.monotonic() - ready))

    custom = {name: amount for name, amount in need.each.items() if name not in ("CPU", "GPU")}
    reserve = ray.remote(num_cpus=need.each["CPU"], num_gpus=need.each["GPU"], resources=custom, max_calls=1)
    task = reserve(work)
    done: tuple[pa.Table, tuple[float, float]] = ray.get(task.remote())
    return done
