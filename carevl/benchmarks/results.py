"""Every figure of a judge, computed from stored predictions alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np

from carevl.benchmarks.baselines import TRIVIAL_JUDGES, judge_trivially
from carevl.benchmarks.comparison import Comparison, compare
from carevl.benchmarks.coverage import Coverage, cover
from carevl.benchmarks.diagnostics import count_statuses, diagnose
from carevl.benchmarks.predictions import Prediction, refuse_missing
from carevl.benchmarks.rows import Row
from carevl.benchmarks.suite import Suite
from carevl.settings.data import ProtocolName
from carevl.stats.bootstrap import Scored, estimate
from carevl.stats.estimate import Estimate

PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)


_SUMMARIZED: tuple[ProtocolName, ...] = ("official_scorer", "strict", "pointwise")
"""Protocols whose figures stand in results.json."""


def by_protocol(rows: Iterable[Row], predictions: Iterable[Prediction]) -> dict[ProtocolName, list[Prediction]]:
    """Return the predictions of these rows, of each protocol that has some, in the order of `PROTOCOLS`."""
    keys, grouped = {row.key for row in rows}, defaultdict[str, list[Prediction]](list)
    for prediction in predictions:
        if prediction.key in keys:
            grouped[prediction.protocol].append(prediction)
    return {protocol: grouped[protocol] for protocol in PROTOCOLS if protocol in grouped}


def score_judge(
    suite: Suite, rows: Sequence[Row], predictions: Iterable[Prediction], *, draws: int | None = None
) -> dict[str, dict[str, Any]]:
    """Score one judge's predictions under every protocol, on the rows that it answered; arguments as for `cover_all`.

    Returns:
        As `score_covered`, per protocol.

    Raises:
        ValueError: there are several judges' predictions.
        UserError: no row has as many draws.
    """
    covered = cover_all(suite, rows, predictions, draws)
    return {protocol: score_covered(suite, protocol, each) for protocol, each in covered.items()}


def cover_all(
    suite: Suite, rows: Sequence[Row], predictions: Iterable[Prediction], draws: int | None = None
) -> dict[ProtocolName, Coverage]:
    """Return what one judge's predictions cover of every protocol, where that is any row.

    Args:
        draws: samples per row that the official scorer uses; when None the benchmark's own number, or the most that
            a row has.

    Raises:
        UserError: no row has so many.
    """
    predicted = by_protocol(rows, predictions)
    covered = {protocol: cover(suite, rows, protocol, own, draws) for protocol, own in predicted.items()}
    return {protocol: each for protocol, each in covered.items() if each.rows}


def score_covered(suite: Suite, protocol: ProtocolName, covered: Coverage) -> dict[str, Any]:
    """Score one judge's predictions under one protocol.

    Returns:
        `figures` (the scorer's), `answers` (parse rate, first-position rate, order consistency, length
        slope), `k` (draws per row; None where none are drawn), the numbers of `rows` that were answered, of those that
        are `scored` and of those with `fewer_draws` than k, `statuses` (predictions by parse status), and the numbers
        of `predictions` and `errors` (questions that the judge could not be asked).
    """
    scored = suite.score(covered.rows, covered.predictions, protocol, draws=covered.k)
    return {
        "figures": estimate(scored),
        "answers": estimate(diagnose(covered.rows, covered.predictions)),
        "k": covered.k,
        "rows": len(covered.rows),
        "scored": _count_scored(scored, covered),
        "fewer_draws": covered.fewer_draws,
        "statuses": count_statuses(covered.predictions),
        "predictions": len(covered.predictions),
        "errors": sum(each.error is not None for each in covered.predictions),
    }


def _count_scored(scored: Scored, covered: Coverage) -> int:
    """Return how many rows count; those with a verdict, where a suite's rows are no matter of right and wrong."""
    once = np.ones((1, len(scored.keys)))
    if scored.n_counted or all(np.isnan(statistic(once)[0]) for statistic in scored.statistics.values()):
        return scored.n_counted
    return len({each.key for each in covered.predictions if each.status == "ok"})


def score_baselines(
    suite: Suite, rows: Sequence[Row], judges: Sequence[Mapping[ProtocolName, Coverage]]
) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Return the figures of the trivial judges where any of some judges has some: judge to protocol to figure."""
    scores: dict[str, dict[str, dict[str, Estimate]]] = {name: {} for name in TRIVIAL_JUDGES}
    for protocol in PROTOCOLS:
        covered = [judge[protocol] for judge in judges if protocol in judge]
        if not covered:
            continue
        keys = {row.key for each in covered for row in each.rows}
        answered = [row for row in rows if row.key in keys]
        k = max((each.k for each in covered if each.k is not None), default=None)
        questions = list(suite.questions(answered, protocol, draws=k))
        for name, of_protocol in scores.items():
            predicted = judge_trivially(name, suite, answered, questions)
            of_protocol[protocol] = estimate(suite.score(answered, predicted, protocol, draws=k))
    return scores


@dataclass(frozen=True)
class JudgeComparison:
    """Two judges under one protocol, on the rows that both answered."""

    comparison: Comparison
    k: int | None
    """Draws per row of either; None where none are drawn."""
    rows: int
    scored: tuple[int, int]
    """Those of the rows that count for each."""


def compare_judges(
    suite: Suite,
    rows: Sequence[Row],
    a: Iterable[Prediction],
    b: Iterable[Prediction],
    *,
    draws: int | None = None,
) -> dict[ProtocolName, JudgeComparison]:
    """Compare judge A with judge B under every protocol that both answered, on the rows that both did."""
    of_a, of_b = by_protocol(rows, a), by_protocol(rows, b)
    comparisons: dict[ProtocolName, JudgeComparison] = {}
    for protocol in of_a:
        if protocol not in of_b:
            continue
        both = [cover(suite, rows, protocol, each[protocol], draws) for each in (of_a, of_b)]
        keys = {row.key for row in both[0].rows} & {row.key for row in both[1].rows}
        common = [row for row in rows if row.key in keys]
        if not common:
            continue
        k = min((covered.k for covered in both if covered.k is not None), default=None)
        both = [
            replace(covered, rows=common, predictions=[each for each in covered.predictions if each.key in keys])
            for covered in both
        ]
        scored = [suite.score(common, covered.predictions, protocol, draws=k) for covered in both]
        counted = tuple(_count_scored(each, covered) for each, covered in zip(scored, both, strict=True))
        comparisons[protocol] = JudgeComparison(compare(*scored), k, len(common), (counted[0], counted[1]))
    return comparisons


def summarize(answered: Mapping[str, tuple[Suite, Sequence[Row], Sequence[Prediction]]]) -> dict[str, Any]:
    """Return the headline figures of one judge over several benchmarks, each {value, low, high} with a 95 % interval.

    Args:
        answered: name of a benchmark to its suite, its rows, and the judge's predictions.

    Returns:
        Per benchmark, its name with `_` for `-`: the suite's headline figures under those of `_SUMMARIZED`, or those of
        the first of them alone (see `Suite.by_protocol`). `parse_rate` and `order_consistency` over the strict
        judgments of all.
    """
    summary: dict[str, Any] = {}
    rows: list[Row] = []
    strict: list[Prediction] = []
    for name, (suite, benchmark_rows, predictions) in answered.items():
        answered_keys = {prediction.key for prediction in predictions}
        refuse_missing(benchmark_rows, [row for row in benchmark_rows if row.key not in answered_keys])
        of_protocol = score_judge(suite, benchmark_rows, predictions)
        kept = {
            protocol: {
                key: each["figures"][key] for key in suite.headlines or each["figures"] if key in each["figures"]
            }
            for protocol, each in of_protocol.items()
            if protocol in _SUMMARIZED
        }
        summary[name.replace("-", "_")] = kept if suite.by_protocol else next(iter(kept.values()), {})
        if judgments := by_protocol(benchmark_rows, predictions).get("strict"):
            rows += benchmark_rows
            strict += judgments
    if not strict:
        return summary
    answers = estimate(diagnose(rows, strict))
    return {**summary, "parse_rate": answers["parse_rate"], "order_consistency": answers["order_consistency"]}
