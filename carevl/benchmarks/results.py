"""Every figure of a judge, computed from stored predictions alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from carevl.benchmarks.baselines import TRIVIAL_JUDGES, judge_trivially
from carevl.benchmarks.comparison import Comparison, compare
from carevl.benchmarks.diagnostics import count_statuses, diagnose
from carevl.benchmarks.predictions import Prediction
from carevl.benchmarks.rows import Row
from carevl.benchmarks.suite import Suite
from carevl.settings.data import ProtocolName
from carevl.stats.bootstrap import estimate
from carevl.stats.estimate import Estimate

PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)


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
    """Score one judge's predictions under every protocol.

    Args:
        draws: samples per row that the official scorer uses; when absent the benchmark's own number, or as many as
            every row has.

    Returns:
        Per protocol `figures` (the scorer's), `answers` (parse rate, first-position rate, order consistency, length
        slope), `statuses` (predictions by parse status), and the numbers of `predictions` and
        `errors` (questions that the judge could not be asked).

    Raises:
        ValueError: a row lacks a prediction, or there are several judges' predictions.
    """
    scores: dict[str, dict[str, Any]] = {}
    for protocol, predicted in by_protocol(rows, predictions).items():
        used = draws or min(suite.draws, _fewest_draws(predicted))
        scored = suite.score(rows, predicted, protocol, draws=used)
        scores[protocol] = {
            "figures": estimate(scored),
            "answers": estimate(diagnose(rows, predicted)),
            "statuses": count_statuses(predicted),
            "predictions": len(predicted),
            "errors": sum(each.error is not None for each in predicted),
        }
    return scores


def _fewest_draws(predictions: Sequence[Prediction]) -> int:
    samples = Counter({prediction.key: 0 for prediction in predictions})
    for prediction in predictions:
        samples[prediction.key] = max(samples[prediction.key], prediction.sample + 1)
    return min(samples.values())


def score_baselines(
    suite: Suite, rows: Sequence[Row], protocols: Iterable[ProtocolName], *, draws: int | None = None
) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Return the figures of the trivial judges on the same rows: judge to protocol to figure."""
    scores: dict[str, dict[str, dict[str, Estimate]]] = {name: {} for name in TRIVIAL_JUDGES}
    used = draws or suite.draws
    for protocol in protocols:
        questions = list(suite.questions(rows, protocol, draws=used))
        for name, of_protocol in scores.items():
            predicted = judge_trivially(name, suite, rows, questions)
            of_protocol[protocol] = estimate(suite.score(rows, predicted, protocol, draws=used))
    return scores


def compare_judges(
    suite: Suite,
    rows: Sequence[Row],
    a: Iterable[Prediction],
    b: Iterable[Prediction],
    *,
    draws: int | None = None,
) -> dict[ProtocolName, Comparison]:
    """Compare judge A with judge B on the same rows, under every protocol that both answered."""
    of_a, of_b = by_protocol(rows, a), by_protocol(rows, b)
    comparisons: dict[ProtocolName, Comparison] = {}
    for protocol in of_a:
        if protocol in of_b:
            used = draws or min(suite.draws, _fewest_draws(of_a[protocol]), _fewest_draws(of_b[protocol]))
            both = (suite.score(rows, each[protocol], protocol, draws=used) for each in (of_a, of_b))
            comparisons[protocol] = compare(*both)
    return comparisons


def summarize(answered: Mapping[str, tuple[Suite, Sequence[Row], Sequence[Prediction]]]) -> dict[str, Any]:
    """Return the headline figures of one judge over several benchmarks, each {value, low, high} with a 95 % interval.

    Args:
        answered: name of a benchmark to its suite, its rows, and the judge's predictions under `official_scorer` and
            `strict`.

    Returns:
        Per benchmark, its name with `_` for `-`: the suite's headline figures under `official_scorer` and `strict`, or
        alone (see `Suite.by_protocol`). `parse_rate` and `order_consistency` over the strict judgments of all.
    """
    summary: dict[str, Any] = {}
    rows: list[Row] = []
    strict: list[Prediction] = []
    for name, (suite, benchmark_rows, predictions) in answered.items():
        of_protocol = score_judge(suite, benchmark_rows, predictions)
        kept = {
            protocol: {
                key: each["figures"][key] for key in suite.headlines or each["figures"] if key in each["figures"]
            }
            for protocol, each in of_protocol.items()
            if protocol in ("official_scorer", "strict")
        }
        summary[name.replace("-", "_")] = kept if suite.by_protocol else next(iter(kept.values()), {})
        if judgments := by_protocol(benchmark_rows, predictions).get("strict"):
            rows += benchmark_rows
            strict += judgments
    if not strict:
        return summary
    answers = estimate(diagnose(rows, strict))
    return {**summary, "parse_rate": answers["parse_rate"], "order_consistency": answers["order_consistency"]}
