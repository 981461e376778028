"""The router of every seed, apart from any training: precision and coverage, the guarantee, other thresholds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from carevl.compare.guarantee import THRESHOLDS, VERSION, by_labels, measure_guarantee, sweep
from carevl.compare.labels import confidence, decided
from carevl.compare.stages import training_routes
from carevl.confidence.calibration import MIN_LABELS
from carevl.data.truth import label_outcome
from carevl.pipeline import results
from carevl.stages.base import item_inputs
from carevl.stages.route import read_fitting, router_facts
from carevl.store.run import RunError
from carevl.store.stage_key import StageKey

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from carevl.compare.trials import ArmRunner
    from carevl.stages.base import RunContext
    from carevl.stages.route import Fitting

_FEWEST = 2 * MIN_LABELS


def measure(runner: ArmRunner, seeds: int, resamples: int) -> dict[str, Any]:
    """Return what the routers of the seeds do.

    Returns:
        `high_precision`, `high_ties` (how many of the wrong ones are ties) and `coverage` (share of the training pairs
        that are high), means over seeds, with those of each seed in `by_seed`; `basis`: `truth` of a drawn world, or
        `labels`; `promise_kept` and `promise`, see `guarantee.Kept`; `sweep` of the first seed: coverage, precision on
        the labelled pairs and, where it is known, true precision of every threshold.

    Raises:
        RunError: too few labelled pairs.
    """
    contexts = [runner.routed(number) for number in range(seeds)]
    names = [expert.name for expert in runner.settings.caption_experts]
    scores = [contexts[0].table(f"score/{name}") for name in names]
    fitting = read_fitting(contexts[0].ingested.items, scores, names)
    if fitting.labelled is None or len(fitting.labelled) < _FEWEST:
        n_labelled = 0 if fitting.labelled is None else len(fitting.labelled)
        raise RunError(
            f"compare: {n_labelled} labelled pairs are too few to test the router on; give {_FEWEST} or more"
        )
    by_seed = [_measure_seed(context, fitting) for context in contexts]
    kept = _measure_guarantee(runner, contexts[0], fitting, resamples)
    precisions = [seed["high_precision"] for seed in by_seed if seed["high_precision"] is not None]
    return {
        "high_precision": float(np.mean(precisions)) if precisions else None,
        "high_ties": float(np.mean([seed["high_ties"] for seed in by_seed])),
        "coverage": float(np.mean([seed["coverage"] for seed in by_seed])),
        "promise_kept": kept["kept"],
        "promise": kept,
        "basis": by_seed[0]["basis"],
        "by_seed": by_seed,
        "sweep": _sweep(runner, contexts[0], fitting),
    }


def _measure_seed(context: RunContext, fitting: Fitting) -> dict[str, Any]:
    """Return one seed's router: its pairs, and how many of its high labels are right."""
    keys = {name: context.keys[name] for name in item_inputs(context.settings)} | {"route": context.keys["router"]}
    routing = results.compute(context.settings, context.run, keys)["routing"]
    counts = {route: routing[route] for route in ("high", "low", "dropped")}
    figures = {"seed": context.settings.seed, **counts, "coverage": routing["high"] / max(1, sum(counts.values()))}
    if figure := routing.get("high_precision"):
        return {
            **figures,
            "basis": "truth",
            "high_precision": figure["value"],
            "high_ties": routing["high_ties"],
            "interval": [figure["low"], figure["high"]],
        }
    assert fitting.labelled is not None
    _, right, high, tied = by_labels(context.settings.router, fitting.labelled, fitting.unlabelled)
    share = float(right[high].mean()) if high.any() else None
    return {**figures, "basis": "labels", "high_precision": share, "high_ties": int((high & tied).sum())}


def _measure_guarantee(runner: ArmRunner, context: RunContext, fitting: Fitting, resamples: int) -> Any:
    """Measure the guarantee, or read what the run directory has of it."""
    inputs = {name: key.fingerprint for name, key in runner.shared.items()}
    inputs_of_guarantee = {
        "version": VERSION,
        "inputs": inputs,
        "router": router_facts(runner.settings.router),
        "resamples": resamples,
    }
    table = context.run.table(StageKey("compare/promise", inputs_of_guarantee))
    if table.manifest is None:
        table.finish(measure_guarantee(runner.settings.router, fitting, resamples, runner.log))
    return table.manifest


def _sweep(runner: ArmRunner, context: RunContext, fitting: Fitting) -> list[dict[str, Any]]:
    truths = results.drawn_truths(runner.settings, runner.run)
    items = {row["item_id"]: row for row in context.ingested.items.read(columns=_ITEM).to_pylist()}
    sure: list[NDArray[Any]] = []
    right: list[float] = []
    for routes in training_routes(context):
        labelled = decided(routes)
        sure.append(np.where(labelled, confidence(routes), np.nan))
        for row, is_decided in zip(routes.select(_PAIR).to_pylist(), labelled, strict=True):
            item = items[row["item_id"]]
            loser = row["first"] + row["second"] - row["winner"]
            outcome = label_outcome(truths, item, row["winner"], loser) if is_decided else None
            right.append(np.nan if outcome is None else float(outcome == "right"))
    true = sweep(np.concatenate(sure), np.array(right), THRESHOLDS)
    assert fitting.labelled is not None
    seen = sweep(*by_labels(context.settings.router, fitting.labelled, fitting.unlabelled)[:2], THRESHOLDS)
    return [
        {**point, "precision": on_labels["precision"], "true_precision": point["precision"]}
        for point, on_labels in zip(true, seen, strict=True)
    ]


_ITEM = ["item_id", "images", "question", "responses"]
_PAIR = ["item_id", "first", "second", "winner"]
