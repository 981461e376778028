"""Controlled rewrites: the same response in another style, scored again. What moves then is not content."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from carevl.audit.ledger import Ledger, Tree
from carevl.audit.outside_texts import ENDS
from carevl.confidence.pairs import NO_CAPTION
from carevl.data.shown_videos import captioned_turns
from carevl.models.experts import load_expert
from carevl.models.experts.inputs import ExpertInput
from carevl.models.row_errors import Failure
from carevl.store.ingested import borrowed_captions
from carevl.store.run import RunError

if TYPE_CHECKING:
    from carevl.confidence.pairs import Pairs
    from carevl.settings.models import Expert
    from carevl.store.ingested import Ingested
    from carevl.store.table import Table

REWRITES: dict[str, Callable[[str], str]] = {
    "verbosity": lambda text: (
        f"Thank you for the question. Here is what can be said about it. {text} I hope that helps."
    ),
    "hedging": lambda text: f"I am not completely sure, but it may be so: {text}",
    "markdown": lambda text: f"### Answer\n\n- **{text}**",
    "end_tokens": lambda text: text + ENDS,
}
"""Each keeps the response's own words and adds nothing about the image. The last is a forgery: what it moves, whoever
writes responses can."""


@dataclass(frozen=True)
class ScoredItem:
    """An item as an expert read it, and the expert's scores of its responses."""

    unit: str
    """What items belong together by: the first image."""
    read: ExpertInput
    scores: Sequence[float]


def audit_styles(experts: Sequence[Expert], pairs: Pairs, items: Mapping[str, Sequence[ScoredItem]]) -> Tree:
    """Measure what rewrites move, by expert.

    Args:
        pairs: give each expert's typical margin.
        items: by expert, those that it scores again.
    """
    styles: Tree = {}
    for expert in experts:
        margins = pairs.margins[:, pairs.experts.index(expert.name)]
        spread = float(np.sqrt(np.nanmean(margins**2)))
        styles[expert.name] = measure_style(expert, items.get(expert.name, []), spread)
    return styles


def measure_style(expert: Expert, items: Sequence[ScoredItem], spread: float) -> Tree:
    """Measure `REWRITE.effect`, in units of `spread`, and `REWRITE.flips`, the share of verdicts that change.

    A verdict is the better of an item's first two responses; one of them is rewritten, each in turn.

    Args:
        spread: the expert's typical margin, in its own scale.
    """
    rows = [
        replace(item.read, responses=[rewrite(text) for text in item.read.responses]).row(expert)
        for item in items
        for rewrite in REWRITES.values()
    ]
    values = iter([_check(expert, row) for row in load_expert(expert)(rows)])
    _, images = np.unique([item.unit for item in items], return_inverse=True)
    effects: dict[str, list[float]] = {name: [] for name in REWRITES}
    flips: dict[str, list[float]] = {name: [] for name in REWRITES}
    for item in items:
        for name in REWRITES:
            rewritten = next(values)
            effects[name].append(float(np.mean(np.subtract(rewritten, item.scores))) / (spread or 1.0))
            flips[name].append(_flips(item.scores, rewritten))
    ledger = Ledger(images)
    for name in REWRITES:
        ledger.put_mean(name, "effect", values=np.array(effects[name]))
        ledger.put_mean(name, "flips", values=np.array(flips[name]))
    return ledger.estimate()


def _check(expert: Expert, row: list[float] | Failure) -> list[float]:
    if isinstance(row, Failure):
        raise RunError(f"expert {expert.name} could not score a rewritten response: {row.message}")
    return row


def _flips(scores: Sequence[float], rewritten: Sequence[float]) -> float:
    before = np.sign(scores[0] - scores[1])
    after = np.sign([rewritten[0] - scores[1], scores[0] - rewritten[1]])
    return float(np.mean(after != before))


def sample_items(ingested: Ingested, captions: Table, scores: Sequence[Table], n: int) -> dict[str, list[ScoredItem]]:
    """Read by expert the first items of every part, about n in all, that have caption and scores.

    A part's items lie in the order of a hash, so the first of them are a fair sample.
    """
    items, borrowed = ingested.items, borrowed_captions(captions)
    parts = items.parts()
    sampled: dict[str, list[ScoredItem]] = {}
    for number in parts:
        rows = items.read(number, _ITEM)
        rows = rows.filter(rows["error"].is_null()).slice(0, -(-n // len(parts)))
        by_item = {row["item_id"]: row for row in rows.to_pylist()}
        columns = ["image_id", "view", "text"]
        written = pa.concat_tables([table.read(number, columns) for table in (captions, borrowed)])
        ids = set(written["image_id"].to_pylist())
        read_as = {key: captioned_turns(item, ids) for key, item in by_item.items()}
        shown = pa.array({name for _, names in read_as.values() for name in names}, pa.string())
        texts = {(row["image_id"], row["view"]): row["text"] for row in _of(written, "image_id", shown)}
        for table in scores:
            seen: set[str] = set()
            for row in _of(table.read(number), "item_id", rows["item_id"]):
                item, key = by_item[row["item_id"]], row["item_id"]
                turns, names = read_as[key]
                own = tuple(texts.get((name, row["view"])) for name in names)
                if row["view"] == NO_CAPTION or row["scores"] is None or not own or None in own or key in seen:
                    continue
                seen.add(key)
                read = ExpertInput(turns, item["responses"], tuple(text or "" for text in own))
                sampled.setdefault(row["expert"], []).append(ScoredItem(item["images"][0], read, row["scores"]))
    return sampled


_ITEM = ["item_id", "images", "places", "turns", "question", "responses", "sources", "error"]


def _of(rows: pa.Table, key: str, values: pa.ChunkedArray | pa.Array) -> Iterator[Mapping[str, Any]]:
    yield from rows.filter(pc.is_in(rows[key], values)).to_pylist()
