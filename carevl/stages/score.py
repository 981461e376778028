"""Stage `score`: every expert reads caption, question and response, and scores every response of an item.

Each item is also scored without its caption (view `none`): what is left then was decided by the text alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from carevl.confidence.pairs import NO_CAPTION
from carevl.inference.experts import fingerprint, load
from carevl.inference.guarded import Failure
from carevl.tables import SCORES, row_error

if TYPE_CHECKING:
    from carevl.config import Expert
    from carevl.inference.pools import Work

VERSION = 2


def facts(expert: Expert) -> dict[str, Any]:
    """What an expert's scores depend on, apart from items and captions."""
    return {
        "version": VERSION,
        "weights": fingerprint(expert),
        **expert.model_dump(include={"name", "kind", "engine", "dtype", "max_model_len", "template"}),
    }


def work(expert: Expert) -> Work:
    """Loads the expert; returns what turns a part of `items` and `captions` into a part of `scores`."""
    score_rows = load(expert)

    def score(tables: Mapping[str, pa.Table]) -> pa.Table:
        captions: dict[str, dict[str, str | None]] = {}
        for row in tables["captions"].to_pylist():
            captions.setdefault(row["image_id"], {})[row["view"]] = row["text"] if row["error"] is None else None
        rows: list[dict[str, Any]] = []
        asked: list[tuple[str, list[str]]] = []
        for item in tables["items"].to_pylist():
            views = captions.get(item["image_id"], {}) if item["error"] is None else {}
            for view, text in {**(views or {"default": None}), NO_CAPTION: ""}.items():
                error = item["error"]
                if error is None and text is None:
                    error = row_error("score", "no caption", "the image has no caption")
                rows.append({"item_id": item["item_id"], "expert": expert.name, "view": view, "error": error})
                if error is None:
                    asked.append((expert.write(text or None, item["question"]), item["responses"]))
        size = expert.pool.batch_size
        made = (one for start in range(0, len(asked), size) for one in score_rows(asked[start : start + size]))
        for row in rows:
            if row["error"] is None:
                scores = next(made)
                if isinstance(scores, Failure):
                    row["error"] = row_error("score", scores.kind, f"{expert.name}: {scores.message}")
                elif not all(math.isfinite(value) for value in scores):
                    row["error"] = row_error("score", "not a number", f"{expert.name} gave {scores}")
                else:
                    row["scores"] = scores
        return pa.Table.from_pylist(rows, SCORES)

    return score
