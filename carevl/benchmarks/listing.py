"""Figures as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from carevl.benchmarks.data import list_some
from carevl.benchmarks.results import JudgeComparison
from carevl.benchmarks.suite import Suite
from carevl.judging.counts import VerdictCounts
from carevl.settings.data import ProtocolName
from carevl.stats.estimate import Estimate, format_estimate

_MANY = 16
"""A longer list leaves out the figures of single data sets and categories (`NAME/…`); figures.json has them all."""


def list_report(suite: Suite, report: Mapping[str, Any]) -> Iterator[str]:
    """Yield a table per protocol: a column per judge and baseline, a row per figure, with 95 % intervals."""
    yield f"{report['benchmark']}: {report['rows']} rows"
    yield from _left_out(report["excluded"])
    judges, baselines = report["judges"], report["baselines"]
    for protocol in next(iter(baselines.values())):
        scores = {name: by_protocol[protocol] for name, by_protocol in judges.items() if protocol in by_protocol}
        columns = {name: {**score["figures"], **score["answers"]} for name, score in scores.items()}
        columns |= {name: by_protocol[protocol] for name, by_protocol in baselines.items() if name not in columns}
        yield ""
        yield from _table(protocol, columns)
        for name, score in scores.items():
            yield from _count_lines(suite, name, score, report["rows"])
        if protocol == "official" and (published := suite.published()):
            yield ""
            yield from _aligned(published)


def _count_lines(suite: Suite, name: str, score: Mapping[str, Any], rows: int) -> Iterator[str]:
    """Yield what a judge's figures are of: rows and draws, then judgments; and a warning where few have a verdict."""
    without = {
        "without a verdict that counts": score["rows"] - score["scored"],
        "without a prediction": rows - score["rows"],
    }
    details = "; ".join(f"{n:,} {words}" for words, n in without.items() if n)
    of_rows = f"figures over {score['scored']:,} of {rows:,} rows" + (f" ({details})" if details else "")
    yield f"{name}: {of_rows}{_draws(suite, score['k'], score['fewer_draws'])}"
    counts = VerdictCounts(**score["verdicts"])
    yield f"{name}: {counts.line()}"
    yield from counts.warning(name)


def _draws(suite: Suite, k: int | None, fewer: int = 0) -> str:
    if k is None:
        return ""
    usual = "" if k == suite.draws else f"; the benchmark draws {suite.draws}"
    short = f"; {fewer:,} rows have fewer and are scored by those" if fewer else ""
    return f", k = {k}{usual}{short}"


def list_comparison(
    suite: Suite, names: tuple[str, str], rows: int, comparisons: Mapping[ProtocolName, JudgeComparison]
) -> Iterator[str]:
    """Yield a table per protocol of the differences A - B, what they are of, and the rows that only one got right.

    Args:
        rows: number of rows of the benchmark.
    """
    a, b = names
    for protocol, each in comparisons.items():
        comparison, (of_a, of_b) = each.comparison, each.scored
        yield from _table(protocol, {f"{a} - {b}": comparison.differences})
        counted = f"{of_a:,} count for {a}, {of_b:,} for {b}"
        yield f"over {each.rows:,} of {rows:,} rows that both answered: {counted}{_draws(suite, each.k)}"
        only = f"right only by {a}: {comparison.only_a}; only by {b}: {comparison.only_b}"
        yield f"{only}; McNemar's exact p = {comparison.p_value:.3g}"


def _left_out(keys: Sequence[str]) -> Iterator[str]:
    if keys:
        yield f"left out, their images are missing: {len(keys)} rows: {list_some(keys)}"


def _table(title: str, columns: Mapping[str, Mapping[str, Estimate]]) -> Iterator[str]:
    names = list(dict.fromkeys(name for figures in columns.values() for name in figures))
    if len(names) > _MANY:
        names = [name for name in names if "/" not in name]
    rows = [[title, *columns]]
    for name in names:
        cells = [format_estimate(each[name]) if name in each else "" for each in columns.values()]
        rows.append([name, *cells])
    yield from _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a table's lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *cells in rows:
        line = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))]
        yield "  ".join(line).rstrip()
