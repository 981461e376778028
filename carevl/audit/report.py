"""An audit's estimates as text for the terminal, and as pictures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from carevl.audit.ledger import Tree
from carevl.audit.outside_texts import format_outside_texts
from carevl.audit.panel import ENSEMBLE
from carevl.stats.estimate import Estimate, format_estimate

_WIDE = 26
_text = partial(format_estimate, digits=2)


def format_lines(report: Tree) -> Iterator[str]:
    """Write the report in lines: tables first, findings last. An estimate is `value (low to high)`, a 95 % interval."""
    if "experts" in report:
        yield from _experts(report)
        for figure, title in (("accuracy", "share right"), ("ece", "calibration error")):
            yield from _groups(report, figure, title)
    if report.get("response_text"):
        yield from ("", "right by the words of the responses alone, for a classifier that sees nothing else")
        yield from (_row(f"source {name}", [_text(figure)]) for name, figure in report["response_text"].items())
    if "style" in report:
        yield from _style(report["style"])
    if "texts" in report:
        yield from ("", *format_outside_texts(report["texts"]))
    yield from _label_free(report)
    yield from _together(report)
    yield from _routing(report)
    yield from _changes(report, "contributions", "what each expert adds: labels kept and right without and with it")
    title = "mitigations, as settings of the router: labels kept and right without and with them"
    yield from _changes(report, "mitigations", title)
    yield from ("", "notes", *(f"  {note}" for note in report["notes"]))
    yield from ("", "findings")
    yield from (f"  {finding['sentence']}" for finding in report["findings"])
    if not report["findings"]:
        yield "  none: nothing is beyond what the audit calls a flaw"


def draw(report: Tree, directory: Path) -> list[Path]:
    """Draw the pictures that the report has data for; return their files."""
    from carevl.plots.audit import draw_agreement, draw_coverage, draw_reliability

    files = []
    if "experts" in report:
        files += draw_reliability(directory / "reliability", report["reliability"])
        files += draw_coverage(directory / "coverage", report["coverage"])
    same: dict[tuple[str, str], float] = {
        (name, other): figure["value"]
        for name, free in report["label_free"].items()
        for other, figure in free.get("same_winner_as", {}).items()
        if figure["value"] is not None
    }
    errors = {(expert, other): figure["value"] or 0.0 for expert, other, figure in _correlations(report)}
    return files + draw_agreement(directory / "agreement", list(report["label_free"]), same, errors)


def _row(name: str, cells: list[str], first: int = 24) -> str:
    return f"  {name:{first}s}" + "".join(f"{cell:>{_WIDE}s}" for cell in cells)


def _experts(report: Tree) -> Iterator[str]:
    experts = report["experts"]
    n = experts[ENSEMBLE]["accuracy"]["n"]
    yield f"experts, on {n} labelled pairs (calibrated on the half of the images that a pair is not from)"
    yield _row("", list(experts))
    rows: list[tuple[str, tuple[str, ...]]] = [
        ("share right", ("accuracy",)),
        ("confidence claimed", ("confidence",)),
        ("calibration error", ("ece",)),
        ("  before calibration", ("raw_ece",)),
        ("right without caption", ("text_only", "accuracy")),
        ("per doubling of length", ("length", "slope")),
        ("right if longer", ("length", "right_is_longer")),
        ("right if shorter", ("length", "right_is_shorter")),
    ]
    for title, path in rows:
        yield _row(title, [_cell(figures, *path) for figures in experts.values()])


def _groups(report: Tree, figure: str, title: str) -> Iterator[str]:
    experts = report["experts"]
    yield from ("", title)
    for which in ("kind", "source", "images", "length"):
        groups = experts[ENSEMBLE].get(f"by_{which}", {})
        if groups:
            yield _row(f"by {which} (pairs)", list(experts))
        for label, group in groups.items():
            cells = [_cell(figures, f"by_{which}", label, figure) for figures in experts.values()]
            yield _row(f"  {label} ({group['accuracy']['n']})", cells)


def _style(style: Tree) -> Iterator[str]:
    yield from ("", "rewrites without new content: shift in margin spreads, and share of verdicts that change")
    yield _row("", list(style))
    rewrites = list(dict.fromkeys(name for figures in style.values() for name in figures))
    for figure, title in (("effect", "shift"), ("flips", "changed verdicts")):
        for name in rewrites:
            yield _row(f"{name}, {title}", [_cell(figures, name, figure) for figures in style.values()], first=30)


def _together(report: Tree) -> Iterator[str]:
    yield from ("", "together")
    for name, free in report["label_free"].items():
        for other, figure in free.get("same_winner_as", {}).items():
            yield _row(f"{name} and {other}, same winner", [_text(figure)], first=34)
    for expert, other, figure in _correlations(report):
        yield _row(f"{expert} and {other}, errors correlate", [_text(figure)], first=34)
    if "redundancy" in report:
        yield _row("independent experts, in effect", [_text(report["redundancy"]["effective_experts"])], first=34)


def _label_free(report: Tree) -> Iterator[str]:
    free = report["label_free"]
    yield from ("", "without labels, on all pairs")
    yield _row("", list(free), first=30)
    rows = [("per doubling of length", "length_slope"), ("same winner without caption", "same_winner_without_caption")]
    for title, figure in rows:
        yield _row(title, [_cell(figures, figure) for figures in free.values()], first=30)
    for source in next(iter(free.values())).get("agrees_with_source", {}):
        cells = [_cell(figures, "agrees_with_source", source) for figures in free.values()]
        yield _row(f"agrees with source {source}", cells, first=30)


def _routing(report: Tree) -> Iterator[str]:
    for name, title in (("router", "labelled pairs"), ("training", "training pairs, by the drawn world's truth")):
        if name in report:
            figures = report[name]
            yield from ("", f"routed high, {title} ({figures['coverage']['n']})")
            yield _row("", ["share kept", "share right"])
            ties = f"  (wrong: {figures['ties']} on ties)"
            yield _row("all", [_cell(figures, "coverage"), _cell(figures, "precision")]) + ties
            for kind, group in figures.get("by_kind", {}).items():
                yield _row(f"  {kind}", [_cell(group, "coverage"), _cell(group, "precision")])


def _changes(report: Tree, key: str, title: str) -> Iterator[str]:
    if not report.get(key):
        return
    yield from ("", title)
    titles = ["kept without", "kept with", "right without", "right with", "change", "at same coverage"]
    yield _row("", titles, first=24)
    for name, figures in report[key].items():
        coverage, precision = figures["coverage"], figures["precision"]
        cells = [coverage["without"], coverage["with"], precision["without"], precision["with"]]
        changes = [precision["change"], precision["change_at_same_coverage"]]
        yield _row(name, [_text(cell) for cell in cells] + [format_estimate(change) for change in changes])


def _correlations(report: Tree) -> Iterator[tuple[str, str, Estimate]]:
    for expert, others in report.get("redundancy", {}).get("error_correlation", {}).items():
        for other, figure in others.items():
            yield expert, other, figure


def _cell(figures: Tree, *path: str) -> str:
    node: Any = figures
    for name in path:
        if name not in node:
            return "-"
        node = node[name]
    return _text(node)
