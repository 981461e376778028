"""`carevl audit`: read a run directory and hand its tables to the audit. Changes none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from carevl.audit.findings import find
from carevl.audit.items import ItemFacts
from carevl.audit.ledger import Tree
from carevl.audit.pairs import audit_pairs
from carevl.audit.rewrites import audit_styles, sample_items
from carevl.data.drawn import draw
from carevl.pipeline.keys import keys_until, load_run, stage_keys
from carevl.pipeline.results import drawn_truths
from carevl.stages.route import read_fitting
from carevl.store.ingested import Ingested
from carevl.store.run import Run, RunError
from carevl.store.table import Table

if TYPE_CHECKING:
    from carevl.settings.tree import Settings


def audit(root: Path, rewrites: int, log: Callable[[str], None]) -> Tree:
    """Measure all that an audit of a run measures, and list its findings.

    Args:
        root: the directory of a run.
        rewrites: about how many items every expert scores again in other styles; 0 for none.

    Raises:
        RunError: no run lies here, or captions and scores are not there for its settings.
    """
    settings, run = load_run(root)
    draw(settings, run)
    tables = _finished(settings, run)
    items = Ingested(tables["ingest"].directory).items
    scores = [tables[f"score/{expert.name}"] for expert in settings.experts]
    fitting = read_fitting(items, scores, [expert.name for expert in settings.experts])
    facts = ItemFacts.read(items, fitting.pairs, drawn_truths(settings, run))
    log(f"{len(fitting.pairs)} pairs read")
    report = audit_pairs(settings.router, fitting.pairs, fitting.labelled, fitting.unlabelled, facts)
    log("pairs measured")
    if rewrites:
        sampled = sample_items(items, tables["caption"], scores, rewrites)
        report["style"] = audit_styles(settings.experts, fitting.pairs, sampled)
        log("rewrites scored")
    report["findings"] = [asdict(finding) for finding in find(report)]
    return {"run": str(root), **report}


def _finished(settings: Settings, run: Run) -> Mapping[str, Table]:
    """Return the tables of a run up to its scores."""
    causes = keys_until(stage_keys(settings, run), "score")
    for name, cause in causes.items():
        action, reason = run.action(cause)
        if action != "skip":
            raise RunError(
                f"{run.root}: {name} is not there for the run's settings and models ({reason}); make it with: "
                f"carevl run {run.settings} --run-dir {run.root}"
            )
    return {name: run.table(cause) for name, cause in causes.items()}
