"""The items behind the pairs of an audit: kind, source and truth, read from the table `items`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from carevl.audit.measures import Groups, length_groups
from carevl.data.truth import Truth, truth_of

if TYPE_CHECKING:
    from carevl.audit.panel import Panel
    from carevl.confidence.pairs import Pairs
    from carevl.store.table import Table


@dataclass(frozen=True)
class ItemFacts:
    """The items of some pairs, in the order of `pairs.item_id`: what groups them, and their truth."""

    kind: list[str]
    """The benchmark's group, or the kind of question in a drawn world; empty where unknown."""
    source: list[str]
    images: list[str]
    """How many images it shows: `none`, `one` or `several`; empty where all show as many."""
    truth: list[Truth | None]
    responses: list[list[str]]

    @staticmethod
    def read(items: Table, pairs: Pairs, truths: Mapping[tuple[str, str], Truth]) -> ItemFacts:
        """Read the items of the pairs; truths are by image_id and question."""
        columns = ["item_id", "images", "question", "responses", "group", "sources"]
        by_id = {}
        for number in items.parts():
            part = items.read(number, columns)
            for row in part.filter(pc.is_in(part["item_id"], pairs.item_id)).to_pylist():
                by_id[row["item_id"]] = row
        rows = [by_id[item] for item in pairs.item_id.to_pylist()]
        truth = [truth_of(truths, row) for row in rows]
        kinds = [each.kind if each else row["group"] or "" for row, each in zip(rows, truth, strict=True)]
        sources = [row["sources"][0]["source"] for row in rows]
        images = [("none", "one", "several")[min(len(row["images"]), 2)] for row in rows]
        images = images if len(set(images)) > 1 else [""] * len(rows)
        return ItemFacts(kinds, sources, images, truth, [row["responses"] or [] for row in rows])

    def groups(self, panel: Panel) -> Groups:
        """Return kind, source, number of images and length of each pair of a panel."""
        return {
            "kind": np.array(self.kind)[panel.item],
            "source": np.array(self.source)[panel.item],
            "images": np.array(self.images)[panel.item],
            "length": length_groups(panel.longest),
        }

    def texts(self, pairs: Pairs) -> list[tuple[str, str]]:
        """Return the two responses of each pair; empty texts of an item that has none."""
        return [
            (self.responses[item][first], self.responses[item][second]) if first >= 0 else ("", "")
            for item, first, second in zip(pairs.item, pairs.first, pairs.second, strict=True)
        ]

    def label(self, pairs: Pairs) -> Pairs:
        """Return the pairs with the truth of a drawn world as their label."""
        rated = [
            [truth.rating(text) for text in texts] if truth else [np.nan] * len(texts)
            for truth, texts in zip(self.truth, self.responses, strict=True)
        ]
        signs = [
            np.sign(rated[item][first] - rated[item][second]) if first >= 0 else np.nan
            for item, first, second in zip(pairs.item, pairs.first, pairs.second, strict=True)
        ]
        return replace(pairs, gold=np.array(signs, dtype=np.float32))
