"""`carevl audit`: what is wrong with the experts of a run, in figures and in words. Reads tables, changes none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from carevl.audit import figures
from carevl.audit.findings import find
from carevl.audit.ledger import Tree
from carevl.audit.mitigations import mitigation_figures
from carevl.audit.panel import Panel, cross_fit
from carevl.audit.rewrites import sample_items, style_figures
from carevl.confidence.calibration import MIN_LABELS
from carevl.confidence.guarantee import CannotCertifyError
from carevl.confidence.pairs import Pairs
from carevl.confidence.policies import fit_router
from carevl.data.drawn import draw
from carevl.data.truth import Truth
from carevl.pipeline.keys import keys_until, load_run, stage_keys
from carevl.pipeline.results import drawn_truths
from carevl.settings.router import RouterSettings
from carevl.stages.route import Fitting, read_fitting
from carevl.store.ingested import Ingested
from carevl.store.run import Run, RunError
from carevl.store.table import Table

if TYPE_CHECKING:
    from carevl.confidence.routing import Router
    from carevl.settings import Settings

Say = Callable[[str], None]
_FEWEST = 4 * MIN_LABELS
"""Labelled pairs below which there are too few for a fit on either half."""


def audit(root: Path, rewrites: int, say: Say) -> Tree:
    """Every figure of the audit of a run, and its findings.

    Args:
        root: the directory of a run.
        rewrites: about how many items every expert scores again in other styles; 0 for none.
        say: told what is done.

    Raises:
        RunError: no run lies here, or captions and scores are not there for its settings.
    """
    settings, where = load_run(root)
    draw(settings, where)
    tables = _finished(settings, where)
    items = Ingested(tables["ingest"].directory).items
    scores = [tables[f"score/{expert.name}"] for expert in settings.experts]
    fitting = read_fitting(items, scores, [expert.name for expert in settings.experts])
    facts = ItemFacts.read(items, fitting.pairs, drawn_truths(settings, where))
    say(f"{len(fitting.pairs)} pairs read")
    report = pair_figures(settings.router, fitting, facts)
    say("pairs measured")
    if rewrites:
        sampled = sample_items(items, tables["caption"], scores, rewrites)
        for expert in settings.experts:
            margins = fitting.pairs.margins[:, fitting.pairs.experts.index(expert.name)]
            spread = float(np.sqrt(np.nanmean(margins**2)))
            style = style_figures(expert, sampled.get(expert.name, []), spread)
            report.setdefault("style", {})[expert.name] = style
        say("rewrites scored")
    report["findings"] = [asdict(finding) for finding in find(report)]
    return {"run": str(root), **report}


def _finished(settings: Settings, where: Run) -> Mapping[str, Table]:
    """The tables of a run up to its scores."""
    causes = keys_until(stage_keys(settings, where), "score")
    for name, cause in causes.items():
        action, reason = where.action(cause)
        if action != "skip":
            raise RunError(
                f"{where.root}: {name} is not there for the run's settings and models ({reason}); make it with: "
                f"carevl run {where.settings} --run-dir {where.root}"
            )
    return {name: where.table(cause) for name, cause in causes.items()}


@dataclass(frozen=True)
class ItemFacts:
    """What is known of the items of some pairs, in the order of `pairs.item_id`."""

    kind: list[str]
    """The benchmark's group, or the kind of question in a drawn world; empty where unknown."""
    source: list[str]
    truth: list[Truth | None]
    responses: list[list[str]]

    @staticmethod
    def read(items: Table, pairs: Pairs, truths: Mapping[tuple[str, str], Truth]) -> ItemFacts:
        columns = ["item_id", "image_id", "question", "responses", "group", "sources"]
        found = {}
        for number in items.parts():
            part = items.read(number, columns)
            for row in part.filter(pc.is_in(part["item_id"], pairs.item_id)).to_pylist():
                found[row["item_id"]] = row
        rows = [found[item] for item in pairs.item_id.to_pylist()]
        truth = [truths.get((row["image_id"], row["question"])) for row in rows]
        kinds = [known.kind if known else row["group"] or "" for row, known in zip(rows, truth, strict=True)]
        sources = [row["sources"][0]["source"] for row in rows]
        return ItemFacts(kinds, sources, truth, [row["responses"] or [] for row in rows])

    def groups(self, panel: Panel) -> figures.Groups:
        """Kind, source and length of each pair of a panel."""
        return {
            "kind": np.array(self.kind)[panel.item],
            "source": np.array(self.source)[panel.item],
            "length": figures.length_groups(panel.longest),
        }

    def label(self, pairs: Pairs) -> Pairs:
        """The pairs with the truth of a drawn world as their label."""
        rated = [
            [known.ratings.get(text, np.nan) for text in texts] if known else [np.nan] * len(texts)
            for known, texts in zip(self.truth, self.responses, strict=True)
        ]
        signs = [
            np.sign(rated[item][first] - rated[item][second]) if first >= 0 else np.nan
            for item, first, second in zip(pairs.item, pairs.first, pairs.second, strict=True)
        ]
        return replace(pairs, gold=np.array(signs, dtype=np.float32))


def pair_figures(settings: RouterSettings, fitting: Fitting, facts: ItemFacts) -> Tree:
    """What scores and labels tell: `label_free`, `training` (by the truth of a drawn world), and with enough labels
    `experts`, `redundancy`, `router`, `reliability`, `coverage` and `mitigations`."""
    labelled, unlabelled = fitting.labelled, fitting.unlabelled
    router, notes = _router(settings, labelled, unlabelled)
    free = Panel.of(router, fitting.pairs)
    report: Tree = {"notes": notes, "label_free": figures.label_free_figures(free, facts.groups(free))}
    if unlabelled is not None and any(facts.truth):
        training = Panel.of(router, facts.label(unlabelled))
        report["training"] = figures.routing_figures(training, facts.groups(training))
    if labelled is None or len(labelled) < _FEWEST:
        report["notes"].append(f"Fewer than {_FEWEST} labelled pairs: nothing is said of right and wrong.")
        return report
    if router.threshold is not None:
        settings = settings.model_copy(update={"threshold": router.threshold})
    panel = cross_fit(settings, labelled, unlabelled)
    groups = facts.groups(panel)
    report |= figures.labelled_figures(panel, groups)
    report["router"] = figures.routing_figures(panel, groups)
    report["reliability"] = figures.reliability_curves(panel)
    report["coverage"] = {
        "points": figures.coverage_curve(panel, settings.level),
        "threshold": router.threshold,
        "level": settings.level,
        "wanted": settings.precision if router.certificate else None,
    }
    report["mitigations"] = mitigation_figures(settings, labelled, unlabelled)
    return report


def _router(settings: RouterSettings, labelled: Pairs | None, unlabelled: Pairs | None) -> tuple[Router, list[str]]:
    """The run's router and its notes; `mean_margin` stands in where no precision can be guaranteed."""
    try:
        router = fit_router(settings, labelled, unlabelled)
        return router, list(router.notes)
    except CannotCertifyError as error:
        router = fit_router(settings.model_copy(update={"policy": "mean_margin"}), labelled, unlabelled)
        return router, [*router.notes, f"{error}. The audit routes by mean_margin at {settings.threshold:g}."]
