"""An audit's estimates in words: what is wrong with whom. A finding needs its whole interval beyond a stated size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from carevl.audit.ledger import Tree
from carevl.audit.panel import ENSEMBLE
from carevl.stats.estimate import Estimate, format_estimate

SLOPE = 0.04
"""Standard deviations of margin per doubling of length."""
BEHIND = 0.1
"""Accuracy that an expert lacks on a kind that the others manage."""
OVERCONFIDENCE = 0.05
"""Confidence less accuracy."""
TEXT_ONLY = 0.55
"""Accuracy without any caption; 0.5 is chance."""
CORRELATION = 0.3
"""Correlation of two experts' errors."""
STYLE = 0.1
"""Standard deviations of margin that a rewrite without content moves a score by."""

_text = partial(format_estimate, digits=2, undefined="unknown")


@dataclass(frozen=True)
class Finding:
    """A flaw of an expert, or of all; `flaw` is its name to search by."""

    expert: str
    flaw: str
    sentence: str


def find(report: Tree) -> list[Finding]:
    """List the findings of a report: `experts` and `redundancy` as `measure_experts` gives them, `style` by expert."""
    findings: list[Finding] = []
    for name, figures in report.get("experts", {}).items():
        findings += _length(name, figures)
        if name != ENSEMBLE:
            findings += _weakness(name, figures)
        findings += _overconfidence(name, figures)
        findings += _text_only(name, figures)
    for name, rewrites in report.get("style", {}).items():
        findings += _style(name, rewrites)
    findings += _response_text(report)
    findings += _outside_texts(report)
    findings += _undecidable(report)
    findings += _redundancy(report)
    return findings


def _length(name: str, figures: Tree) -> Iterator[Finding]:
    length = figures["length"]
    slope = length["slope"]
    if _low(slope) > SLOPE or _high(slope) < -SLOPE:
        longer = slope["value"] > 0
        yield Finding(
            name,
            "prefers_longer" if longer else "prefers_shorter",
            f"{name} prefers {'longer' if longer else 'shorter'} responses: a doubling of length moves its margin by "
            f"{_text(slope)} of its spread; it is right in {_text(length['right_is_longer'])} when the right "
            f"response is the longer one and in {_text(length['right_is_shorter'])} when it is the shorter.",
        )


def _weakness(name: str, figures: Tree) -> Iterator[Finding]:
    for which in ("kind", "source"):
        for label, group in figures.get(f"by_{which}", {}).items():
            if "behind_others" not in group or group["behind_elsewhere"]["value"] is None:
                continue
            if _low(group["behind_others"]) > max(BEHIND, _high(group["behind_elsewhere"])):
                yield Finding(
                    name,
                    f"weak_on_{label}",
                    f"{name} is weak on {label}: {_text(group['accuracy'])}, where the others reach "
                    f"{_text(group['others'])}; elsewhere it is behind them by {_text(group['behind_elsewhere'])}.",
                )


def _overconfidence(name: str, figures: Tree) -> Iterator[Finding]:
    parts = []
    raw = figures.get("raw_overconfidence")
    if raw is not None and _low(raw) > OVERCONFIDENCE:
        claimed = raw["value"] + figures["accuracy"]["value"]
        parts.append(
            f"its own scores claim {claimed:.2f} and it is right in {_text(figures['accuracy'])} (calibration error "
            f"{_text(figures['raw_ece'])})"
        )
    kinds = {label: group for label, group in figures.get("by_kind", {}).items() if _low(group["overconfidence"]) > 0.1}
    if kinds:
        worst = sorted(kinds.items(), key=lambda kind: -kind[1]["overconfidence"]["value"])
        named = ", ".join(f"{label} ({_claim(group)})" for label, group in worst)
        parts.append(f"{'even ' if parts else ''}once calibrated it is too sure on {named}")
    if parts:
        yield Finding(name, "overconfident", f"{name} is overconfident: {'; '.join(parts)}.")


def _claim(group: Tree) -> str:
    return f"{group['confidence']['value']:.2f} claimed, {_text(group['accuracy'])} right"


def _text_only(name: str, figures: Tree) -> Iterator[Finding]:
    accuracy = figures["text_only"]["accuracy"]
    if _low(accuracy) > TEXT_ONLY:
        yield Finding(
            name,
            "text_only",
            f"{name} needs no image: without any caption it is right in {_text(accuracy)}, where chance is 0.50.",
        )


def _style(name: str, rewrites: Tree) -> Iterator[Finding]:
    for rewrite, figures in rewrites.items():
        effect = figures["effect"]
        if _low(effect) > STYLE or _high(effect) < -STYLE:
            verb = "likes" if effect["value"] > 0 else "dislikes"
            yield Finding(
                name,
                f"{verb}_{rewrite}",
                f"{name} {verb} {rewrite}: the same response rewritten so moves by {_text(effect)} of its margins' "
                f"spread, and a rewrite of one response changes {_text(figures['flips'])} of its verdicts.",
            )


def _response_text(report: Tree) -> Iterator[Finding]:
    for source, accuracy in report.get("response_text", {}).items():
        if _low(accuracy) > TEXT_ONLY:
            yield Finding(
                "all",
                "response_text",
                f"responses of source {source} tell by their words alone which is right: {_text(accuracy)} for a "
                "classifier that sees neither image nor question, where chance is 0.50; a judge may learn that.",
            )


def _outside_texts(report: Tree) -> Iterator[Finding]:
    counts = report.get("texts", {})
    if counts.get("control"):
        listed = ", ".join(counts["strings"])
        yield Finding(
            "all",
            "control_strings",
            f"{counts['control']} of {counts['items']} items hold control strings ({listed}): plain text to the models "
            "here, and tokens to programs that let them through.",
        )
    if counts.get("verdicts"):
        yield Finding(
            "all",
            "stated_verdicts",
            f"{counts['verdicts']} of {counts['items']} items have a response that states a verdict, such as "
            f"{counts['examples'][0]!r}: it may speak to the judge; `carevl audit RUN --judge JUDGE` measures that.",
        )


def _undecidable(report: Tree) -> Iterator[Finding]:
    experts = {name: figures for name, figures in report.get("experts", {}).items() if name != ENSEMBLE}
    kinds = sorted({label for figures in experts.values() for label in figures.get("by_kind", {})})
    for kind in kinds:
        seen = [figures["by_kind"][kind]["accuracy"] for figures in experts.values() if kind in figures["by_kind"]]
        best = max(seen, key=lambda figure: figure["value"] if figure["value"] is not None else -1.0)
        if _high(best) < 0.6:
            yield Finding(
                "all",
                f"undecided_{kind}",
                f"no expert decides {kind}: the best is right in {_text(best)}; chance is 0.50.",
            )


def _redundancy(report: Tree) -> Iterator[Finding]:
    redundancy = report.get("redundancy", {})
    for expert, others in redundancy.get("error_correlation", {}).items():
        for other, figure in others.items():
            if _low(figure) > CORRELATION:
                yield Finding(
                    f"{other}+{expert}",
                    "redundant",
                    f"{other} and {expert} err together: correlation of errors {_text(figure)}.",
                )


def _low(figure: Estimate) -> float:
    return -math.inf if figure["low"] is None else figure["low"]


def _high(figure: Estimate) -> float:
    return math.inf if figure["high"] is None else figure["high"]
