"""`results.json`: what a run found, computed from its stored rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from carevl.benchmarks.predictions import from_table
from carevl.benchmarks.results import summarize
from carevl.benchmarks.suites import SUITES
from carevl.data.drawn import DataRoot, draw
from carevl.data.truth import Outcome, Truth, label_outcome, read_truth
from carevl.pipeline.repair import refuse_damaged
from carevl.pipeline.round_results import round_figures, round_lines
from carevl.stages import evaluate, ingest
from carevl.stages.rounds import RoundOutcomes
from carevl.stats.estimate import format_estimate
from carevl.stats.exact import share
from carevl.store.damage import DamagedError, encode_json, read_json
from carevl.store.earlier_versions import with_tasks
from carevl.store.ingested import Ingested
from carevl.store.run import Run, RunError
from carevl.store.stage_key import StageKey
from carevl.store.table import Table, write_atomically
from carevl.training.adapters import ROUGH, describe_rounding

if TYPE_CHECKING:
    from carevl.settings.tree import Settings

RESULTS = "results.json"
COMPARISON = "compare.json"
"""What `carevl compare` writes beside it."""
_WAY_OUT = "`carevl run` writes it anew, and keeps what is left of it as results.damaged"
REHEARSAL = "a rehearsal: reserved GPUs that torch does not see are CPUs here; nothing of it is a result"
Truths = Mapping[tuple[str, str], Truth]


def compute(settings: Settings, run: Run, keys: Mapping[str, StageKey]) -> dict[str, Any]:
    """Return every figure that the finished tables allow: settings, both routings, targets, pairs and judges."""
    finished = {name: run.table(key) for name, key in keys.items() if run.table(key).manifest is not None}
    refuse_damaged(run, keys, finished)
    figures: dict[str, Any] = {"settings": settings.model_dump(mode="json")}
    truths = drawn_truths(settings, run)
    if "route" in finished:
        items = {row["item_id"]: row for row in _items(Ingested.of(finished).items)}
        figures["routing"] = routing_figures(finished["route"], items, truths)
        if "route_low" in finished:
            figures["low_routing"] = routing_figures(finished["route_low"], items, truths)
        if "demonstrate" in finished:
            figures["targets"] = _targets(Table(finished["demonstrate"].directory / "targets"))
        if "select" in finished:
            figures["pairs"] = pair_figures(finished["select"], items, truths)
        if settings.rounds > 1:
            outcomes = RoundOutcomes(run, lambda: keys)
            describe = partial(pair_figures, items=items, truths=truths)
            figures["rounds"] = round_figures(settings.rounds, finished, items, outcomes, describe)
    if rounding := _rounding(finished):
        figures["rounding"] = rounding
    predictions = {name: finished[f"evaluate/{name}"] for name in evaluate.JUDGES if f"evaluate/{name}" in finished}
    return {**figures, "judges": judges(settings, run, predictions)}


def _rounding(finished: Mapping[str, Table]) -> dict[str, Any]:
    """Return what the format of merged weights lost of each phase's change, where that was measured."""
    phases = [name for name in finished if name.rpartition("/")[2] in ("sft", "dpo")]
    manifests = {phase: finished[phase].manifest or {} for phase in phases}
    return {phase: manifest["rounding"] for phase, manifest in manifests.items() if "rounding" in manifest}


def recompute(settings: Settings, run: Run, keys: Mapping[str, StageKey]) -> dict[str, Any]:
    """Return as `compute`, for a run whose results are there; also the figures of every evaluation on test data.

    Raises:
        RunError: a stage of these results is no longer there as its sources and settings are now.
    """
    file = run.root / RESULTS
    stored = read_json(file, _WAY_OUT) if file.exists() else {}
    gone = [
        stage["name"]
        for stage in stored.get("stages", [])
        if stage["name"] not in keys or run.table(keys[stage["name"]]).manifest is None
    ]
    if gone:
        raise RunError(
            f"{run.root}: sources, models or settings have changed since {', '.join(gone)} ran, so {RESULTS} is left "
            "as it is; `carevl status` says what changed, and `carevl run` makes the results anew"
        )
    draw(settings, run)
    finals = [{**entry, "judges": _final_judges(entry, run)} for entry in stored.get("final", [])]
    return compute(settings, run, keys) | ({"final": finals} if finals else {})


def _final_judges(entry: Mapping[str, Any], run: Run) -> dict[str, Any]:
    from carevl.settings.tree import Settings

    predictions = {
        name: run.table_of(f"final/{name}", fingerprint) for name, fingerprint in entry["fingerprints"].items()
    }
    return judges(Settings.model_validate(entry["settings"]), run, predictions)


def judges(settings: Settings, run: Run, predictions: Mapping[str, Table]) -> dict[str, Any]:
    """Return the figures of judges.

    Args:
        settings: whose benchmarks the predictions are about.
        predictions: judge to its predictions.

    Returns:
        Judge to its figures; nothing when there are no benchmarks.
    """
    if not settings.benchmarks:
        return {}
    figures = {}
    for name, table in predictions.items():
        answered = {}
        rows_of_judge = table.read()
        for benchmark in settings.benchmarks:
            suite = SUITES[benchmark.name]
            of_suite = from_table(rows_of_judge.filter(pc.equal(rows_of_judge["benchmark"], suite.name)))
            answered[suite.name] = (suite, evaluate.load(settings, run, benchmark), of_suite)
        figures[name] = summarize(answered)
    return figures


def add_final(run: Run, entry: Mapping[str, Any]) -> None:
    """List an evaluation on test data, unless these predictions are listed."""
    stored = read_json(run.root / RESULTS, _WAY_OUT)
    listed = stored.get("final", [])
    if entry["fingerprints"] not in [other["fingerprints"] for other in listed]:
        write(run, stored, final=[*listed, entry])


def write(run: Run, figures: Mapping[str, Any], **more: Any) -> Path:
    """Write results.json; what it held besides the figures stays unless `more` replaces it."""
    file = run.root / RESULTS
    stored = _stored(file)
    kept: dict[str, Any] = {
        name: stored[name] for name in ("stages", "wall_seconds", "final") if name in stored and name not in figures
    }
    write_atomically(file, encode_json({**figures, **kept, **more}))
    return file


def _stored(file: Path) -> dict[str, Any]:
    """Return what a file of results holds; one that is damaged is put aside, and a new one begun."""
    try:
        return read_json(file, _WAY_OUT) if file.exists() else {}
    except DamagedError:
        file.replace(file.with_suffix(".damaged"))
        return {}


def drawn_truths(settings: Settings, run: Run) -> Truths:
    """Return the truth of the drawn worlds among the sources, by image_id and question; nothing for other data."""
    worlds = {Path(source.path).parent.parent for source in ingest.sources(DataRoot.of(settings, run))}
    return {key: truth for world in sorted(worlds) for key, truth in read_truth(world).items()}


def _items(items: Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = items.read(
        columns=["item_id", "images", "question", "responses", "gold", "error"]
    ).to_pylist()
    return [row for row in rows if row["error"] is None and row["gold"] is None]


def _share_right(outcomes: Sequence[Outcome], share_name: str, ties_name: str) -> dict[str, Any]:
    """Return the share of labels that are right, ties being wrong ones, and how many are ties; nothing of no label."""
    if not outcomes:
        return {}
    return {share_name: share([outcome == "right" for outcome in outcomes]), ties_name: outcomes.count("tie")}


def routing_figures(routes: Table, items: Mapping[str, Mapping[str, Any]], truths: Truths) -> dict[str, Any]:
    """Return pairs per route without the labelled ones, and where truth is known the precision of the winners."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    outcomes: dict[str, list[Outcome]] = {"high": [], "low": []}
    columns = ["item_id", "first", "second", "route", "winner", "reason"]
    for row in routes.read(columns=columns).to_pylist():
        item = items.get(row["item_id"])
        if item is None:
            continue
        counts[row["route"]] += 1
        reasons[row["reason"]] += 1
        if row["route"] in outcomes and row["winner"] is not None and row["winner"] >= 0:
            loser = row["first"] + row["second"] - row["winner"]
            outcome = label_outcome(truths, item, row["winner"], loser)
            outcomes[row["route"]] += [] if outcome is None else [outcome]
    figures: dict[str, Any] = {route: counts[route] for route in ("high", "low", "dropped")}
    for route, of_route in outcomes.items():
        figures |= _share_right(of_route, f"{route}_precision", f"{route}_ties")
    return {**figures, "reasons": reasons}


def _targets(targets: Table) -> dict[str, Any]:
    rows = targets.read(columns=["task", "evidence"]).to_pylist()
    tasks = Counter(row["task"] for row in rows)
    return {"count": len(rows), "with_evidence": sum(row["evidence"] for row in rows), "tasks": tasks}


def pair_figures(pairs: Table, items: Mapping[str, Mapping[str, Any]], truths: Truths) -> dict[str, Any]:
    """Chosen-rejected pairs, by task; where truth is known, the share whose chosen judgment prefers what is better."""
    tasks: Counter[str] = Counter()
    names: set[str] = set()
    outcomes: list[Outcome] = []
    for number in pairs.parts():
        for row in with_tasks(pairs.read(number)).to_pylist():
            tasks[row["task"]] += 1
            names.add(row["item_id"])
            outcome = label_outcome(truths, items[row["item_id"]], row["winner"], row["loser"])
            outcomes += [] if outcome is None else [outcome]
    counts = {"count": tasks.total(), "tasks": tasks, "items": len(names)}
    return counts | _share_right(outcomes, "right_way", "ties")


def table(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the results as a person reads them, one line at a time."""
    if results.get("settings", {}).get("cluster", {}).get("rehearse"):
        yield REHEARSAL
    if routing := results.get("routing"):
        yield from _routing_lines(routing, "routed")
    if again := results.get("low_routing"):
        yield from _routing_lines(again, "again")
    if targets := results.get("targets"):
        yield f"targets of phase 1: {targets['count']}{_of_tasks(targets)}, {targets['with_evidence']} with evidence"
    if pairs := results.get("pairs"):
        right = (
            f", {format_estimate(pairs['right_way'])} the right way{_of_ties(pairs)}" if "right_way" in pairs else ""
        )
        yield f"pairs of phase 2: {pairs['count']}{_of_tasks(pairs)} from {pairs['items']} items{right}"
    yield from round_lines(results.get("rounds", ()))
    for phase, rounding in results.get("rounding", {}).items():
        if rounding["overall"] > ROUGH:
            yield f"{phase}: {describe_rounding(rounding)}"
    if judges := results.get("judges"):
        yield ""
        yield from _judge_lines(judges, "")
    for entry in results.get("final", []):
        yield ""
        yield from _judge_lines(entry["judges"], f"test data, {entry['time']}")


def _judge_lines(judges: Mapping[str, Any], title: str) -> Iterator[str]:
    yield f"{title:44s}" + "".join(f"{name:>24s}" for name in judges)
    for path in _leaves(next(iter(judges.values()))):
        values = (format_estimate(_at(judge, path)) for judge in judges.values())
        yield f"{' '.join(path):44s}" + "".join(f"{value:>24s}" for value in values)


def _routing_lines(routing: Mapping[str, Any], title: str) -> Iterator[str]:
    total = sum(routing[route] for route in ("high", "low", "dropped"))
    yield f"{title:8s} {'pairs':>7s} {'share':>7s}  labels right"
    for route in ("high", "low", "dropped"):
        precision = format_estimate(routing.get(f"{route}_precision"))
        ties = _of_ties(routing, f"{route}_ties")
        yield f"{route:8s} {routing[route]:7d} {routing[route] / max(1, total):7.1%}  {precision}{ties}"


def _of_tasks(figures: Mapping[str, Any]) -> str:
    """Return how many rows there are of each task."""
    return f" ({', '.join(f'{n} {task}' for task, n in figures['tasks'].items())})" if figures["tasks"] else ""


def _of_ties(figures: Mapping[str, Any], name: str = "ties") -> str:
    """Return how many of the labels are ties, for a share that counts them as wrong; nothing where none is known."""
    return f" (wrong: {figures[name]} on ties)" if name in figures else ""


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
