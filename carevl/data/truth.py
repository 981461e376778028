"""The exact truth of a drawn world, for reports only: nothing that is trained or routed reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from carevl.errors import reading


@dataclass(frozen=True)
class Truth:
    """The truth of an item."""

    kind: str
    decidable: bool
    """Whether a caption without positions and sizes tells right from wrong."""
    ratings: Mapping[str, int]
    """Text of a response to its rating, 5 when it is right."""


def read_truth(world: Path) -> dict[tuple[str, str], Truth]:
    """Read the truth of every item of a drawn world, by image_id and question; nothing where there is none."""
    truths = {}
    for file in sorted((world / "truth").glob("*.parquet")):
        columns = ["image_sha256", "question", "kind", "decidable", "responses"]
        with reading(file):
            rows = pq.read_table(file, columns=columns).to_pylist()
        for row in rows:
            ratings = {response["text"]: response["rating"] for response in row["responses"]}
            truths[row["image_sha256"], row["question"]] = Truth(row["kind"], row["decidable"], ratings)
    return truths


def truth_of(truths: Mapping[tuple[str, str], Truth], item: Mapping[str, Any]) -> Truth | None:
    """Return the truth of a row of the table `items`, of which `images` and `question` are read; None: unknown."""
    return truths.get((item["images"][0], item["question"])) if len(item["images"]) == 1 else None
