"""Stage `sample`: the phase-1 judge judges every low-confidence pair several times, in both orders.

Where the settings say so it also answers the bare question: what it sees when no response leads it on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from carevl.stages.base import phase2_members
from carevl.stages.low_items import phase1_stage
from carevl.stages.sampling import Item, Prompted, SamplingSpec, both_orders

if TYPE_CHECKING:
    from carevl.settings.tree import Settings

VERSION = 2


def sampling_spec(settings: Settings) -> SamplingSpec:
    """Return what the phase-1 judge is asked."""
    prompts = _with_answer if settings.sample.answers else _low_pairs
    return SamplingSpec(prompts, settings.sample.samples, settings.sample.temperature, settings.seed)


def _low_pairs(item: Item, routes: Sequence[dict[str, Any]]) -> list[Prompted]:
    del item
    low = [route for route in routes if route["route"] == "low"]
    return [prompted for route in low for prompted in both_orders(route["first"], route["second"])]


def _with_answer(item: Item, routes: Sequence[dict[str, Any]]) -> list[Prompted]:
    pairs = _low_pairs(item, routes)
    return [*pairs, Prompted("answer", ())] if pairs else []


STAGE = phase1_stage(
    "sample",
    VERSION,
    phase2_members,
    sampling_spec,
    lambda settings: settings.sample.model_dump(),
    ("samples", "temperature"),
)
