"""Stage `score_testimony`: every expert scores the responses of low items again, with what the phase-1 judge saw.

Each testimony is a view of its own: caption, what was said, question, response. One that says nothing (empty, cut, a
refusal, the question once more, another script) makes no view; items without any have no row. What judgments of the
item give as evidence is scored in the same way, as if it were responses (view `evidence`), beside the testimony given
most often.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from carevl.data.answers import find_fault
from carevl.data.shown_videos import captioned_turns
from carevl.judging.turns import turns_of
from carevl.models.experts import EXPERT_KINDS
from carevl.models.experts.inputs import ExpertInput
from carevl.stages import score
from carevl.stages.base import PARTS, Counts, RunContext, Stage, reads_items, without_inputs
from carevl.stages.score import ScoreProcessor, captions_by_image, expert_job, expert_of

if TYPE_CHECKING:
    from carevl.data.drawn import DataRoot
    from carevl.settings.tree import Settings

VERSION = 1
EVIDENCE = "evidence"
"""The view in which an expert scores the evidence of an item's judgments, see `evidence_of`."""


def testimony_views(settings: Settings) -> list[str]:
    """Return the views in which an expert scores the responses of an item: one for each testimony."""
    return [_view(sample) for sample in range(settings.testify.samples)]


def _view(sample: int) -> str:
    return f"testimony {sample}"


def fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
    """Return what scores depend on, apart from items, captions and testimony."""
    facts = score.fingerprint_inputs(settings, root, table)
    return {"version": VERSION, **facts, "observer": expert_of(settings, table).observer}


class ScoreTestimonyProcessor(ScoreProcessor):
    """Turns a part of `items`, `captions`, `testimony` and `judgments` into a part of `scores`."""

    def read(self, tables: Mapping[str, pa.Table]) -> tuple[list[dict[str, Any]], list[ExpertInput]]:
        sees = EXPERT_KINDS[self.expert.kind].sees_images
        rows: list[dict[str, Any]] = []
        inputs: list[ExpertInput] = []
        captions, evidence = captions_by_image(tables), evidence_of(tables["judgments"])
        for item, said in testified(tables):
            turns, texts = _captioned(item, captions)
            views = [(_view(sample), item["responses"], text) for sample, text in said.items()]
            if given := evidence.get(item["item_id"]):
                views.append((EVIDENCE, given, Counter(said.values()).most_common(1)[0][0]))
            for view, responses, text in views:
                rows.append({"item_id": item["item_id"], "expert": self.expert.name, "view": view})
                inputs.append(ExpertInput(turns_of(item) if sees else turns, responses, texts, testimony=text))
        return [row | {"error": None} for row in rows], inputs

    def row_inputs(self, tables: Mapping[str, pa.Table]) -> Mapping[tuple[Any, ...], Any]:
        """The captions, what was said, and the evidence of judgments."""
        captions, evidence = captions_by_image(tables), evidence_of(tables["judgments"])
        return {
            (name := item["item_id"],): [_captioned(item, captions)[1], said, evidence.get(name)]
            for item, said in testified(tables)
        }


def _captioned(item: Mapping[str, Any], captions: Mapping[str, Mapping[str, str | None]]) -> tuple[Any, Any]:
    """Return an item's turns, and its captions of the first view; no captions where one of them is missing."""
    turns, names = captioned_turns(item, captions)
    texts = [next(iter(captions.get(name, {}).values()), None) for name in names]
    return turns, None if None in texts else tuple(texts)


def testified(tables: Mapping[str, pa.Table]) -> Iterator[tuple[dict[str, Any], dict[int, str]]]:
    """Yield the items with testimony that says something, and what was said, by its sample."""
    said: dict[str, dict[int, str]] = defaultdict(dict)
    rows: Sequence[dict[str, Any]] = tables["testimony"].to_pylist()
    for row in rows:
        if row["error"] is None:
            said[row["item_id"]][row["sample"]] = row["evidence"]
    cut = {(row["item_id"], row["sample"]) for row in rows if row["status"] == "truncated"}
    for item in tables["items"].to_pylist():
        name = item["item_id"]
        kept = {
            sample: text
            for sample, text in sorted(said[name].items())
            if find_fault(text, item["question"], truncated=(name, sample) in cut) is None
        }
        if kept:
            yield item, kept


def evidence_of(judgments: pa.Table) -> dict[str, list[str]]:
    """Return the distinct evidence of the judgments of each item, in the order in which it is scored."""
    found: dict[str, set[str]] = defaultdict(set)
    for row in judgments.select(["item_id", "order", "evidence"]).to_pylist():
        if row["order"] and row["evidence"]:  # without an order it is an answer
            found[row["item_id"]].add(row["evidence"])
    return {name: sorted(texts) for name, texts in found.items()}


def _keys(tables: Mapping[str, pa.Table]) -> Iterator[str]:
    return (item["item_id"] for item, _ in testified(tables))


def run(context: RunContext) -> Counts:
    """Score every item with testimony by every pending expert, side by side in a pool each."""
    jobs = [
        expert_job(context, table, ScoreTestimonyProcessor, _keys, testimony="testify", judgments="sample")
        for table in context.pending
    ]
    return context.run_pools(jobs)


def members(settings: Settings) -> list[str]:
    """Return the names of the experts that read testimony, where the judge testifies."""
    return [expert.name for expert in settings.testimony_experts] if settings.testifies else []


STAGE = Stage(
    name="score_testimony",
    members=members,
    inputs=reads_items("caption", "testify", "sample"),
    fingerprint_inputs=fingerprint_inputs,
    run=run,
    reservations=score.pools_of("score_testimony", members),
    models=score.models,
    retryable="score",
    row_facts=without_inputs,
    contents=PARTS,
)
