"""Stage `testify`: what the phase-1 judge sees in an item with low pairs, when no response leads it on.

Labelled items testify, too, those of the images that the router of low pairs is fitted and tested on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from carevl.confidence.label_shares import serves
from carevl.settings.router import LabelShares
from carevl.stages.base import testimony_members
from carevl.stages.low_items import phase1_stage
from carevl.stages.route import label_facts
from carevl.stages.sampling import Item, Prompted, SamplingSpec

if TYPE_CHECKING:
    from carevl.settings.tree import Settings

VERSION = 1


@dataclass(frozen=True)
class _Ask:
    """What is asked about an item: once, whatever its pairs, where any is low."""

    words: str
    shares: LabelShares | None
    seed: int

    def __call__(self, item: Item, routes: Sequence[dict[str, Any]]) -> list[Prompted]:
        if not item["images"] or not any(route["route"] == "low" for route in routes):
            return []
        if item["gold"] is not None and not serves(item["images"][0], "low_router", self.shares, self.seed):
            return []
        return [Prompted("testimony", (), self.words)]


def testimony_spec(settings: Settings) -> SamplingSpec:
    """Return what the phase-1 judge is asked."""
    testify = settings.testify
    ask = _Ask(testify.prompt, settings.labels, settings.router.seed)
    return SamplingSpec(ask, testify.samples, testify.temperature, settings.seed, labelled=True)


STAGE = phase1_stage(
    "testify",
    VERSION,
    testimony_members,
    testimony_spec,
    lambda settings: {**label_facts(settings), **settings.testify.model_dump()},
    ("samples", "temperature", "prompt"),
)
