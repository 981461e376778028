"""`results.json`: what a run found, computed from its stored rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from carevl.benchmarks import BENCHMARKS
from carevl.benchmarks.intervals import Figure
from carevl.benchmarks.predictions import from_table
from carevl.benchmarks.results import summary
from carevl.miniworld.truth import Truth, read_truth
from carevl.runs import Cause, Run, Table, write_atomically
from carevl.stages import evaluation, ingest
from carevl.stages.ingest import Ingested

if TYPE_CHECKING:
    from carevl.config import Settings

RESULTS = "results.json"
Truths = Mapping[tuple[str, str], Truth]


def compute(settings: Settings, where: Run, causes: Mapping[str, Cause]) -> dict[str, Any]:
    """Every figure that the finished stages among `causes` allow: settings, routing, targets, pairs and judges."""
    finished = {name: where.table(cause) for name, cause in causes.items() if where.table(cause).manifest is not None}
    found: dict[str, Any] = {"settings": settings.model_dump(mode="json")}
    truths = drawn_truths(settings, where)
    if "route" in finished:
        items = {row["item_id"]: row for row in _items(Ingested(finished["ingest"].directory).items)}
        found["routing"] = _routing(finished["route"], items, truths)
        if "demonstrate" in finished:
            found["targets"] = _targets(Table(finished["demonstrate"].directory / "targets"))
        if "select" in finished:
            found["pairs"] = _pairs(finished["select"], items, truths)
    return {**found, "judges": judges(settings, where, causes)}


def judges(settings: Settings, where: Run, causes: Mapping[str, Cause]) -> dict[str, Any]:
    """The figures of every judge whose predictions are there."""
    found = {}
    for name in evaluation.JUDGES:
        cause = causes.get(f"evaluate/{name}")
        if cause is None or where.table(cause).manifest is None:
            continue
        answered = {}
        predicted = where.table(cause).read()
        for benchmark in settings.benchmarks:
            predictions = from_table(predicted.filter(pc.equal(predicted["benchmark"], benchmark.name)))
            rows = evaluation.load(settings, where, benchmark)
            answered[benchmark.name] = (BENCHMARKS[benchmark.name], rows, predictions)
        found[name] = summary(answered)
    return found


def add_final(where: Run, entry: Mapping[str, Any]) -> None:
    """Lists an evaluation on test data."""
    known = json.loads((where.root / RESULTS).read_text())
    write(where, known, final=[*known.get("final", []), entry])


def write(where: Run, figures: Mapping[str, Any], **more: Any) -> Path:
    """Writes results.json; what it held besides the figures stays unless `more` replaces it."""
    file = where.root / RESULTS
    known = json.loads(file.read_text()) if file.exists() else {}
    kept = {name: known[name] for name in ("stages", "wall_seconds", "final") if name in known}
    text = json.dumps({**figures, **kept, **more}, indent=2, ensure_ascii=False)
    write_atomically(file, text.encode("utf-8", "surrogatepass"))
    return file


def drawn_truths(settings: Settings, where: Run) -> Truths:
    """The truth of the drawn worlds among the sources, by image_id and question; nothing for other data."""
    worlds = {Path(source.path).parent.parent for source in ingest.sources(settings, where)}
    return {key: truth for world in sorted(worlds) for key, truth in read_truth(world).items()}


def _items(items: Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = items.read(
        columns=["item_id", "image_id", "question", "responses", "gold", "error"]
    ).to_pylist()
    return [row for row in rows if row["error"] is None and row["gold"] is None]


def better(item: Mapping[str, Any], truths: Truths, winner: int, loser: int) -> bool | None:
    """Whether one response is truly better than another; None when that is unknown or they are alike."""
    truth = truths.get((item["image_id"], item["question"]))
    if truth is None:
        return None
    ratings = [truth.ratings[item["responses"][i]] for i in (winner, loser)]
    return None if ratings[0] == ratings[1] else ratings[0] > ratings[1]


def _routing(routes: Table, items: Mapping[str, Mapping[str, Any]], truths: Truths) -> dict[str, Any]:
    """Pairs per route without the labelled ones, and where truth is known the precision of the winners."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    right: dict[str, list[bool]] = {"high": [], "low": []}
    columns = ["item_id", "first", "second", "route", "winner", "reason"]
    for row in routes.read(columns=columns).to_pylist():
        item = items.get(row["item_id"])
        if item is None:
            continue
        counts[row["route"]] += 1
        reasons[row["reason"]] += 1
        if row["route"] in right and row["winner"] is not None and row["winner"] >= 0:
            loser = row["first"] + row["second"] - row["winner"]
            true = better(item, truths, row["winner"], loser)
            right[row["route"]] += [] if true is None else [true]
    precision = {f"{route}_precision": share(hits) for route, hits in right.items() if hits}
    return {"high": counts["high"], "low": counts["low"], "dropped": counts["dropped"], **precision, "reasons": reasons}


def _targets(targets: Table) -> dict[str, Any]:
    rows = targets.read(columns=["task", "evidence"]).to_pylist()
    tasks = Counter(row["task"] for row in rows)
    return {"count": len(rows), "with_evidence": sum(row["evidence"] for row in rows), "tasks": tasks}


def _pairs(pairs: Table, items: Mapping[str, Mapping[str, Any]], truths: Truths) -> dict[str, Any]:
    """Chosen-rejected pairs; where truth is known, the share whose chosen verdict is right."""
    rows = pairs.read(columns=["item_id", "order", "winner"]).to_pylist()
    hits = []
    for row in rows:
        loser = sum(row["order"]) - row["winner"]
        true = better(items[row["item_id"]], truths, row["winner"], loser)
        hits += [] if true is None else [true]
    right = {"right_way": share(hits)} if hits else {}
    return {"count": len(rows), "items": len({row["item_id"] for row in rows}), **right}


def share(hits: Sequence[bool]) -> Figure:
    """A share with its exact 95 % interval (Clopper-Pearson 1934)."""
    from scipy.stats import binomtest

    interval = binomtest(sum(hits), len(hits)).proportion_ci()
    return {"value": sum(hits) / len(hits), "low": float(interval.low), "high": float(interval.high)}


def table(results: Mapping[str, Any]) -> Iterator[str]:
    """The results as a person reads them, one line at a time."""
    if routing := results.get("routing"):
        yield from _routing_lines(routing)
    if targets := results.get("targets"):
        tasks = ", ".join(f"{n} {task}" for task, n in targets["tasks"].items())
        yield f"targets of phase 1: {targets['count']} ({tasks}), {targets['with_evidence']} with evidence"
    if pairs := results.get("pairs"):
        right = f", {_figure(pairs['right_way'])} the right way" if "right_way" in pairs else ""
        yield f"pairs of phase 2: {pairs['count']} from {pairs['items']} items{right}"
    if judges := results.get("judges"):
        yield ""
        yield f"{'':44s}" + "".join(f"{name:>24s}" for name in judges)
        for path in _leaves(next(iter(judges.values()))):
            values = (_figure(_at(judge, path)) for judge in judges.values())
            yield f"{' '.join(path):44s}" + "".join(f"{value:>24s}" for value in values)


def _routing_lines(routing: Mapping[str, Any]) -> Iterator[str]:
    total = sum(routing[route] for route in ("high", "low", "dropped"))
    yield f"{'routed':8s} {'pairs':>7s} {'share':>7s}  labels right"
    for route in ("high", "low", "dropped"):
        precision = _figure(routing.get(f"{route}_precision"))
        yield f"{route:8s} {routing[route]:7d} {routing[route] / max(1, total):7.1%}  {precision}"


def _leaves(tree: Mapping[str, Any], *above: str) -> Iterator[tuple[str, ...]]:
    for name, below in tree.items():
        if isinstance(below, Mapping) and "value" not in below:
            yield from _leaves(below, *above, name)
        elif isinstance(below, Mapping):
            yield (*above, name)


def _at(tree: Mapping[str, Any], path: Iterable[str]) -> Any:
    for name in path:
        tree = tree.get(name, {})
    return tree or None


def _figure(figure: Figure | None) -> str:
    if not figure or figure["value"] is None:
        return "-"
    if figure["low"] is None or figure["high"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
